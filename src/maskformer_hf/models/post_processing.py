"""Post-processing as pure functions: query logits in, semantic, instance and panoptic segmentations and tracks out.

The order is that of the original MaskFormer and Mask2Former (`mask_former_model.py`, `maskformer_model.py`): mask
logits are resized bilinearly to the padded input, cropped to the picture, resized to the target size, and only then
turned into probabilities and compared with thresholds.

Shapes: T frames, Q queries, K classes, h w mask cells, H W target pixels. Mask logits may have any floating dtype and
live on any device; all arithmetic is float32.

How the full resolution is avoided. Bilinear interpolation cannot leave the range of the cells that it mixes. So the
target is cut into blocks of about two by two mask cells, each query gets its smallest and largest logit per block,
and from these follow bounds of every score that hold for all pixels of the block. Where the bounds already name the
winner the block is filled; only the other blocks, mostly along outlines, are computed pixel by pixel. The result is
that of the plain computation, except that pixels whose two best scores differ by less than `MARGIN` may go either
way, as they do between two machines.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# How much a lower bound must exceed its rivals' upper bounds before a block counts as decided: above the rounding of
# sums of some hundred float32 products, far below any difference that means something.
MARGIN = 1e-5

# A block is about this many mask cells high and wide. Smaller blocks leave less area undecided and cost more bounds;
# of 1, 2, 3 and 4 this is the fastest at 100 queries, 150 classes and stride 4.
CELLS_PER_BLOCK = 2

# Numbers held at once in each temporary: on a CPU what fits its caches, elsewhere what keeps the kernels busy.
CPU_BUDGET = 2**19
DEVICE_BUDGET = 2**24


class ImageGeometry(NamedTuple):
    """Three (height, width) pairs in pixels that lead from mask logits to the result of one image."""

    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    target_size: tuple[int, int]


class Instances(NamedTuple):
    """N instances of one image, best score first; their masks may overlap.

    masks (N, H, W) bool; scores (N,) float32; labels (N,) int64; areas (N,) int64 in pixels; boxes (N, 4) float32, x0
    y0 x1 y1 in pixels, where x1 and y1 are the far edges of the last pixels, so that x1 - x0 is the width.
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor
    areas: Tensor
    boxes: Tensor


def image_geometries(
    outputs: Any, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
) -> list[ImageGeometry]:
    """Reads the sizes of each image of a batch from model outputs, be their masks of queries or logits of pixels.

    Without `outputs.padded_sizes` the padded input is taken to be four times as large as the mask logits, without
    `outputs.image_sizes` the images are taken to be unpadded. Without target sizes the result has the image size.
    Raises ValueError for sizes that contradict each other, naming the image.
    """
    maps = outputs.logits if is_per_pixel(outputs) else outputs.masks_queries_logits
    batch_size, mask_height, mask_width = maps.shape[0], maps.shape[-2], maps.shape[-1]
    default = [(4 * mask_height, 4 * mask_width)] * batch_size
    padded_sizes = _size_list(getattr(outputs, "padded_sizes", None), default, "padded_sizes")
    image_sizes = _size_list(getattr(outputs, "image_sizes", None), padded_sizes, "image_sizes")
    targets = _size_list(target_sizes, image_sizes, "target_sizes")
    for index, (padded, image) in enumerate(zip(padded_sizes, image_sizes, strict=True)):
        if image[0] > padded[0] or image[1] > padded[1]:
            raise ValueError(f"Image {index}: image size {image} is larger than the padded size {padded}.")
    return [ImageGeometry(*sizes) for sizes in zip(padded_sizes, image_sizes, targets, strict=True)]


def is_per_pixel(outputs: Any) -> bool:
    """Whether model outputs are class logits of every pixel, `logits`, and not classes and masks of queries."""
    return getattr(outputs, "logits", None) is not None


def _size_list(sizes: Any, default: list[tuple[int, int]], name: str) -> list[tuple[int, int]]:
    if sizes is None:
        return default
    rows = sizes.tolist() if isinstance(sizes, Tensor) else [tuple(size) for size in sizes]
    if len(rows) != len(default):
        raise ValueError(f"{name} has {len(rows)} entries for {len(default)} images; give one (height, width) each.")
    result = []
    for index, row in enumerate(rows):
        if len(row) != 2 or any(int(side) != side or side < 1 for side in row):
            raise ValueError(f"{name}[{index}] is {row}; give (height, width) as two positive whole numbers.")
        result.append((int(row[0]), int(row[1])))
    return result


@torch.no_grad()
def semantic_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: ImageGeometry,
    *,
    resize: Literal["logits", "scores"] = "logits",
) -> Tensor:
    """Class id of every pixel, (H, W) int64: argmax over classes of sum over queries of class times mask probability.

    class_logits (Q, K + 1), no-object last; mask_logits (Q, h, w). `resize` says what is brought to the target size:
    mask logits (the original with SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or PANOPTIC_ON), or class scores computed
    at the padded size (the original's default for semantic models). The two agree where the target size is the image
    size, and the second is slow elsewhere, since it has no short cut.
    """
    if resize not in ("logits", "scores"):
        raise ValueError(f"resize={resize!r} is unknown; choose 'logits' or 'scores'.")
    if resize == "scores" and geometry.image_size != geometry.target_size:
        strips = semantic_score_strips(class_logits, mask_logits, geometry, resize=resize)
        return torch.cat([scores.argmax(0) for scores in strips])
    probabilities = _class_probabilities(class_logits)[:, :-1].contiguous()
    grid = _make_grid(mask_logits, geometry)
    canvas = _empty_canvas(grid, torch.int64)
    with _full_precision(mask_logits):
        for band in _bands(mask_logits, grid):
            lower = band.low.sigmoid_() @ probabilities
            upper = band.high.sigmoid_() @ probabilities
            best, winner = lower.max(1)
            upper.scatter_(1, winner[:, None], -1.0)
            undecided = (best <= upper.amax(1) + MARGIN).nonzero()[:, 0]
            _fill(canvas, band, winner)
            for blocks in _chunks(undecided, grid, max(probabilities.shape)):
                # Of the many classes only those are compared that can win a pixel of these blocks.
                possible = (upper[blocks] >= best[blocks, None] - MARGIN).any(0)
                possible[winner[blocks]] = True
                classes = possible.nonzero()[:, 0]
                row, column = _block_position(band, grid, blocks)
                masks = _logits_in_blocks(band, grid, row, column).sigmoid_()
                scores = masks.flatten(0, 1) @ probabilities[:, classes]
                _paint(canvas, row, column, classes[scores.argmax(1)])
    return _crop(canvas, grid)


@torch.no_grad()
def semantic_scores(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: ImageGeometry,
    *,
    resize: Literal["logits", "scores"] = "logits",
) -> Tensor:
    """Class scores of every pixel, (K, H, W) float32, as `semantic_segmentation` compares them; not normalised."""
    return torch.cat(list(semantic_score_strips(class_logits, mask_logits, geometry, resize=resize)), dim=1)


@torch.no_grad()
def semantic_score_strips(
    class_logits: Tensor, mask_logits: Tensor, geometry: ImageGeometry, *, resize: Literal["logits", "scores"]
) -> Iterator[Tensor]:
    """The rows of `semantic_scores` from top to bottom, some at a time: (K, rows, W) float32."""
    padded, image, target = geometry
    probabilities = _class_probabilities(class_logits)[:, :-1]
    queries, height, _ = mask_logits.shape
    device = mask_logits.device
    # Rows are resized by matrices, because a strip needs only some of them; columns by F.interpolate.
    if resize == "logits":
        to_points = resize_matrix(height, padded[0], image[0], target[0])
        to_target = torch.eye(target[0])
    else:
        to_points = resize_matrix(height, padded[0], image[0], image[0])
        to_target = resize_matrix(image[0], image[0], image[0], target[0])
    step = max(1, _budget(device) // (queries * max(padded[1], target[1])))
    for start in range(0, target[0], step):
        point_weights, first_point = _touched(to_target[start : start + step])
        last_point = first_point + point_weights.shape[1]
        mask_weights, first_row = _touched(to_points[first_point:last_point])
        with _full_precision(mask_logits):
            cells = mask_logits[:, first_row : first_row + mask_weights.shape[1]].float()
            logits = torch.matmul(mask_weights.to(device), cells)
            logits = _resize_width(logits, padded[1])[..., : image[1]]
            if resize == "logits":
                logits = _resize_width(logits, target[1])
            scores = torch.einsum("qk,qrw->krw", probabilities, logits.sigmoid())
            if resize == "scores":
                scores = _resize_width(torch.matmul(point_weights.to(device), scores), target[1])
        yield scores


@torch.no_grad()
def per_pixel_segmentation(logits: Tensor, geometry: ImageGeometry) -> Tensor:
    """Class id of every pixel, (H, W) int64, from class logits of every pixel (K, h, w), the larger the better."""
    grid = _make_grid(logits, geometry)
    canvas = _empty_canvas(grid, torch.int64)
    with _full_precision(logits):
        for band in _bands(logits, grid):
            best, winner = band.low.max(1)
            band.high.scatter_(1, winner[:, None], -math.inf)
            undecided = (best <= band.high.amax(1) + MARGIN).nonzero()[:, 0]
            _fill(canvas, band, winner)
            for blocks in _chunks(undecided, grid, len(logits)):
                row, column = _block_position(band, grid, blocks)
                _paint(canvas, row, column, _logits_in_blocks(band, grid, row, column).argmax(-1))
    return _crop(canvas, grid)


@torch.no_grad()
def per_pixel_scores(logits: Tensor, geometry: ImageGeometry) -> Tensor:
    """Class logits of every pixel, (K, H, W) float32, as `per_pixel_segmentation` compares them."""
    padded, image, target = geometry
    resized = F.interpolate(logits[None].float(), size=padded, mode="bilinear", align_corners=False)
    resized = resized[..., : image[0], : image[1]]
    if image != target:
        resized = F.interpolate(resized, size=target, mode="bilinear", align_corners=False)
    return resized[0]


@torch.no_grad()
def panoptic_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: ImageGeometry,
    *,
    threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] = (),
    intersect_with_mask: bool = False,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Segment id of every pixel, (H, W) int32 with 0 = void, and one record a segment in the order of the queries.

    A query stays when its best class is not no-object and scores more than `threshold`. Each pixel goes to the query
    with the largest class score times mask probability. A segment stays when its pixels are at least
    `overlap_mask_area_threshold` of those where its own mask probability reaches `mask_threshold`. Segments of one
    class in `label_ids_to_fuse` share the first one's id and record. With `intersect_with_mask` a segment keeps only
    pixels where its own mask probability reaches `mask_threshold`, as in Mask2Former; without, it keeps all that it
    won, as in MaskFormer.

    Records: id, label_id, was_fused (the label is one of those to fuse), score (that of the first query of a fused
    segment) and area in pixels.
    """
    scores, labels = _class_probabilities(class_logits).max(-1)
    kept = ((labels != class_logits.shape[-1] - 1) & (scores > threshold)).nonzero()[:, 0]
    if len(kept) == 0:
        return torch.zeros(geometry.target_size, dtype=torch.int32, device=mask_logits.device), []
    scores, labels = scores[kept], labels[kept]
    limit = _logit(mask_threshold)
    grid = _make_grid(mask_logits, geometry)
    # Holds k for pixels that query k won and that its own mask covers, and k + number of queries for others that it
    # won.
    canvas = _empty_canvas(grid, torch.int32)
    mask_areas = torch.zeros(len(kept), dtype=torch.int64, device=mask_logits.device)
    with _full_precision(mask_logits):
        for band in _bands(mask_logits[kept], grid):
            covered = band.low >= limit
            partly_covered = (band.high >= limit) & ~covered
            mask_areas += _count(grid.pixels[band.start : band.stop].flatten(), covered)
            lower, upper = band.low.sigmoid_().mul_(scores), band.high.sigmoid_().mul_(scores)
            best, winner = lower.max(1)
            own = covered.gather(1, winner[:, None])[:, 0]
            _fill(canvas, band, torch.where(own, winner, winner + len(kept)))
            # A block is computed where a second query may win a pixel, and where a mask has an edge to be counted; in
            # it only the queries which that concerns.
            candidates = upper >= best[:, None] - MARGIN
            needs_pixels = (candidates.sum(1) > 1) | partly_covered.any(1)
            concerned = (candidates | partly_covered) & needs_pixels[:, None]
            for blocks, queries, listed in _query_lists(concerned, grid):
                row, column = _block_position(band, grid, blocks)
                logits = _listed_logits(band, grid, row, column, queries)
                covers = logits >= limit
                weights = torch.where(listed, scores[queries], -1.0)  # what only fills the list cannot win
                place = logits.sigmoid_().mul_(weights[..., None]).max(1, keepdim=True).indices
                winner = queries[..., None].expand_as(logits).gather(1, place)[:, 0]
                own = covers.gather(1, place)[:, 0]
                _paint(canvas, row, column, torch.where(own, winner, winner + len(kept)))
                counts = (covers & _inside_blocks(grid, row, column)[:, None]).sum(-1)
                counts *= listed & partly_covered[blocks].gather(1, queries)
                mask_areas.index_add_(0, queries.flatten(), counts.flatten())
    ids = _crop(canvas, grid)
    won = torch.bincount(ids.flatten(), minlength=2 * len(kept)).view(2, -1)

    # From here on everything is a few numbers a query: one copy to the host, plain Python, one table look-up back.
    won_own, won_other, mask_area = torch.cat([won, mask_areas[None]]).tolist()
    new_ids = [0] * len(kept)
    records: list[dict[str, Any]] = []
    record_of_fused: dict[int, dict[str, Any]] = {}
    for query, (score, label) in enumerate(zip(scores.tolist(), labels.tolist(), strict=True)):
        area = won_own[query] + won_other[query]
        painted = won_own[query] if intersect_with_mask else area
        if area == 0 or mask_area[query] == 0 or painted == 0:
            continue
        if area / mask_area[query] < overlap_mask_area_threshold:
            continue
        record = record_of_fused.get(label)
        if record is None:
            record = {
                "id": len(records) + 1,
                "label_id": label,
                "was_fused": label in label_ids_to_fuse,
                "score": round(score, 6),
                "area": 0,
            }
            records.append(record)
            if record["was_fused"]:
                record_of_fused[label] = record
        record["area"] += painted
        new_ids[query] = record["id"]
    others = [0] * len(kept) if intersect_with_mask else new_ids
    table = torch.tensor(new_ids + others, dtype=torch.int32, device=ids.device)
    return table.index_select(0, ids.flatten()).view(ids.shape), records


@torch.no_grad()
def instance_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: ImageGeometry,
    *,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    top_k: int = 100,
    excluded_label_ids: Collection[int] = (),
) -> Instances:
    """Instances that may overlap, from the `top_k` best pairs of query and class, as Mask2Former does it.

    A mask is where the mask probability exceeds `mask_threshold`. The score is the class probability times the mean
    mask probability inside the mask; instances below `threshold` and empty ones are left out, and so are those of
    `excluded_label_ids` (stuff) after the best pairs have been chosen. One query can give several instances, of
    different classes.
    """
    num_labels = class_logits.shape[-1] - 1
    pairs = _class_probabilities(class_logits)[:, :-1].flatten()
    class_scores, pair = pairs.topk(min(top_k, len(pairs)))
    queries, labels = pair // num_labels, pair % num_labels
    # The mean of probabilities is at most 1, hence no pair can end above its class score.
    possible = class_scores >= threshold
    if excluded_label_ids:
        excluded = torch.tensor(sorted(excluded_label_ids), device=labels.device)
        possible &= ~torch.isin(labels, excluded)
    class_scores, queries, labels = class_scores[possible], queries[possible], labels[possible]
    kept, position = torch.unique(queries, return_inverse=True)
    masks = _masks_in_blocks(mask_logits[kept], geometry, _logit(mask_threshold))
    scores = class_scores * (masks.probability_sum / masks.area.clamp(min=1))[position]
    alive = ((scores >= threshold) & (masks.area[position] > 0)).nonzero()[:, 0]
    order = alive[scores[alive].argsort(descending=True, stable=True)]
    position = position[order]
    return Instances(
        masks=masks.draw(position.tolist()),
        scores=scores[order],
        labels=labels[order],
        areas=masks.area[position],
        boxes=masks.boxes[position],
    )


class Tracks(NamedTuple):
    """N objects of one clip, best first.

    scores (N,) float32; labels (N,) int64; queries (N,) int64, the query of each, whose tube in all frames is its mask.
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor


@torch.no_grad()
def best_tracks(class_logits: Tensor, *, threshold: float = 0.0, top_k: int = 10) -> Tracks:
    """The `top_k` best pairs of query and class of a clip, as Mask2Former-VIS takes them, that reach `threshold`.

    class_logits (Q, K + 1), no-object last. The score is the class probability alone, whatever the mask.
    """
    num_labels = class_logits.shape[-1] - 1
    pairs = _class_probabilities(class_logits)[:, :-1].flatten()
    scores, pair = pairs.topk(min(top_k, len(pairs)))
    scores, pair = scores[scores >= threshold], pair[scores >= threshold]
    return Tracks(scores, pair % num_labels, pair // num_labels)


@torch.no_grad()
def tube_masks(
    mask_logits: Tensor, queries: Tensor, geometry: ImageGeometry, *, mask_threshold: float = 0.5
) -> Iterator[Tensor]:
    """The masks of N queries in each frame of a clip, one frame after the other, (N, H, W) bool.

    mask_logits (Q, T, h, w); queries (N,), of which a query may be there twice. A mask is where its probability exceeds
    `mask_threshold`.
    """
    kept, position = torch.unique(queries, return_inverse=True)
    places = position.tolist()
    for frame_logits in mask_logits.unbind(1):
        yield _masks_in_blocks(frame_logits[kept], geometry, _logit(mask_threshold)).draw(places)


@torch.no_grad()
def flatten_instances(instances: Instances, overlap_mask_area_threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """Draws instances into one map, better scores on top: ids (H, W) int32 with 0 = void, and which were drawn (N,)
    bool.

    An instance of which less than `overlap_mask_area_threshold` would be visible is left out, as panoptic merging
    does; the ids of the others count from 1 in the order of their scores.
    """
    masks = instances.masks
    segmentation = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    drawn = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    ids = torch.zeros((), dtype=torch.int32, device=masks.device)
    wanted = instances.areas * overlap_mask_area_threshold
    for index, (left, top, right, bottom) in enumerate(instances.boxes.int().tolist()):
        window = segmentation[top:bottom, left:right]
        free = (window == 0) & masks[index, top:bottom, left:right]
        visible = torch.count_nonzero(free)
        drawn[index] = draw = (visible > 0) & (visible >= wanted[index])
        ids = ids + draw
        window += free * (ids * draw)
    return segmentation, drawn


@torch.no_grad()
def without_duplicates(instances: Instances, duplicate_iou: float) -> Instances:
    """Instances, best first, without those whose mask has an IoU above `duplicate_iou` with a better one of the same
    class that stays."""
    masks = instances.masks.flatten(1)
    common = torch.zeros(len(masks), len(masks), device=masks.device)
    # As products of float32, exact up to 2^24; some pixels at a time, since they take four bytes here.
    for part in masks.split(2**18, dim=1):
        part = part.float()
        common += part @ part.T
    areas = masks.sum(1)
    iou = common / (areas[:, None] + areas - common).clamp(min=1)
    duplicates = ((iou > duplicate_iou) & (instances.labels[:, None] == instances.labels)).cpu()
    kept = torch.ones(len(masks), dtype=torch.bool)
    for index in range(len(masks)):
        if kept[index]:
            kept[index + 1 :] &= ~duplicates[index, index + 1 :]
    return keep_instances(instances, kept.to(masks.device))


@torch.no_grad()
def keep_instances(instances: Instances, kept: Tensor) -> Instances:
    """The instances that `kept` (N,) bool names. Their masks are moved up within their storage, to save a copy."""
    indices = kept.nonzero()[:, 0].tolist()
    for position, index in enumerate(indices):
        if position != index:
            instances.masks[position] = instances.masks[index]
    others = {name: part[kept] for name, part in instances._asdict().items() if name != "masks"}
    return Instances(masks=instances.masks[: len(indices)], **others)


def encode_coco_rle(masks: Tensor) -> list[dict[str, Any]]:
    """Run-length encodes masks (N, H, W) bool as pycocotools does: {"size": [H, W], "counts": str}, ready for JSON."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError("Run-length encoding needs pycocotools: pip install pycocotools") from error
    encoded = []
    for mask in masks:
        rle = coco_mask.encode(np.asfortranarray(mask.to(torch.uint8).numpy(force=True)))
        counts = rle["counts"]  # bytes, though its type stub says str
        encoded.append({"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts})
    return encoded


def resize_matrix(mask_length: int, padded_length: int, image_length: int, target_length: int) -> Tensor:
    """What resizing to the padded length, cropping and resizing to the target does to one axis: (target, mask) float32.

    It is read off torch's own interpolation of unit vectors, so its weights are those of `F.interpolate`.
    """
    unit = torch.eye(mask_length)[None]
    padded = F.interpolate(unit, size=padded_length, mode="linear", align_corners=False)
    image = padded[..., :image_length]
    if target_length != image_length:
        image = F.interpolate(image, size=target_length, mode="linear", align_corners=False)
    return image[0].T.contiguous()


class _Axis(NamedTuple):
    """How one axis of the target is cut into blocks, and which mask cells each block reads."""

    length: int  # target pixels
    block: int  # pixels in a block
    offset: int  # pixels of the first block that lie before the picture
    blocks: int
    cells: Tensor  # (blocks, S) int64, the S neighbouring cells that a block reads
    first_cell: list[int]  # the same on the host, first of each block
    weights: Tensor  # (blocks, block, S) float32
    inside: Tensor  # (blocks, block) bool, False for pixels beyond the picture


class _Grid(NamedTuple):
    """The blocks of a picture. Both weights are spread over the pixels of a block and the cells that it reads, so that
    their product is what interpolation does in one block."""

    rows: _Axis
    columns: _Axis
    row_weights: Tensor  # (block rows, pixels of a block, cells) float32
    column_weights: Tensor  # (block columns, pixels of a block, cells) float32
    pixels: Tensor  # (block rows, block columns) int64, pixels of each block that belong to the picture

    @property
    def block_pixels(self) -> int:
        return self.rows.block * self.columns.block


class _Band(NamedTuple):
    """Some rows of blocks with all that belongs to them; blocks are numbered row by row within the band."""

    start: int
    stop: int
    cells: Tensor  # (rows, w, Q) float32 mask logits
    first_row: int
    low: Tensor  # (blocks, Q) smallest logit in reach of a block
    high: Tensor  # (blocks, Q) largest


def _make_grid(mask_logits: Tensor, geometry: ImageGeometry) -> _Grid:
    padded, image, target = geometry
    device = mask_logits.device
    rows = _block_axis(mask_logits.shape[-2], padded[0], image[0], target[0], device)
    columns = _block_axis(mask_logits.shape[-1], padded[1], image[1], target[1], device)
    shape = (rows.block, columns.block, rows.cells.shape[1], columns.cells.shape[1])
    return _Grid(
        rows,
        columns,
        rows.weights[:, :, None, :, None].expand(-1, *shape).flatten(3).flatten(1, 2),
        columns.weights[:, None, :, None, :].expand(-1, *shape).flatten(3).flatten(1, 2),
        rows.inside.sum(1)[:, None] * columns.inside.sum(1),
    )


def _block_axis(mask: int, padded: int, image: int, target: int, device: torch.device) -> _Axis:
    matrix = resize_matrix(mask, padded, image, target)
    pixels_per_cell = (padded / mask) * (target / image)
    block = max(1, round(CELLS_PER_BLOCK * pixels_per_cell))
    # Blocks begin where pixels begin to read the next pair of cells (pixel t lies at (t + 0.5) / pixels_per_cell -
    # 0.5), so that at whole-numbered strides each reads one cell more than it spans.
    offset = -max(0, math.ceil(pixels_per_cell / 2 - 0.5)) % block
    blocks = -(-(target + offset) // block)
    rows = torch.zeros(blocks * block, mask)
    rows[offset : offset + target] = matrix
    inside = torch.zeros(blocks * block, dtype=torch.bool)
    inside[offset : offset + target] = True
    rows = rows.view(blocks, block, mask)
    reads = (rows != 0).any(1).int()
    first = reads.argmax(1)
    last = mask - 1 - reads.flip(1).argmax(1)
    span = int((last - first).max()) + 1
    first = first.clamp(max=mask - span)
    cells = first[:, None] + torch.arange(span)
    weights = rows.gather(2, cells[:, None].expand(-1, block, -1))
    return _Axis(
        target,
        block,
        offset,
        blocks,
        cells.to(device),
        first.tolist(),
        weights.to(device),
        inside.view(blocks, block).to(device),
    )


def _bands(mask_logits: Tensor, grid: _Grid) -> Iterator[_Band]:
    """Cuts the picture into bands of block rows; the bounds of the last band are free to be overwritten."""
    queries, _, width = mask_logits.shape
    rows, columns = grid.rows, grid.columns
    span = rows.cells.shape[1]
    cells_per_row = max(1, (rows.first_cell[-1] - rows.first_cell[0]) // max(1, rows.blocks - 1))
    step = _budget(mask_logits.device) // (max(1, queries) * width * cells_per_row)
    step = max(1, min(step, 2**24 // (rows.block * columns.length)))  # whole numbers that float32 holds, see _count
    for start in range(0, rows.blocks, step):
        stop = min(start + step, rows.blocks)
        first_row = rows.first_cell[start]
        last_row = rows.first_cell[stop - 1] + span
        # Queries last, so that everything below runs over contiguous numbers.
        cells = mask_logits[:, first_row:last_row].permute(1, 2, 0).float().contiguous()
        row_cells = rows.cells[start:stop] - first_row
        low = _pool(cells, row_cells, columns.cells, torch.minimum)
        high = _pool(cells, row_cells, columns.cells, torch.maximum)
        if not bool(torch.isfinite(low.sum() + high.sum())):
            raise ValueError(
                "The logits of masks or pixels hold NaN or infinity; check the weights and the pixel values."
            )
        yield _Band(start, stop, cells, first_row, low, high)


def _pool(cells: Tensor, row_cells: Tensor, column_cells: Tensor, operation: Any) -> Tensor:
    """Minimum or maximum over the cells that each block reads: (rows, w, Q) -> (blocks, Q)."""
    for dim, index in enumerate((row_cells, column_cells)):
        pooled = cells.index_select(dim, index[:, 0])
        for offset in range(1, index.shape[1]):
            operation(pooled, cells.index_select(dim, index[:, offset]), out=pooled)
        cells = pooled
    return cells.flatten(0, 1)


def _blocks_at_once(grid: _Grid, values_per_pixel: int) -> int:
    cells = grid.row_weights.shape[2]  # a weight for each of them and each pixel
    return max(1, _budget(grid.pixels.device) // (grid.block_pixels * max(cells, values_per_pixel)))


def _chunks(blocks: Tensor, grid: _Grid, values_per_pixel: int) -> Sequence[Tensor]:
    """Cuts a list of blocks so that the values of all their pixels fit the budget; an empty list has no parts."""
    at_once = _blocks_at_once(grid, values_per_pixel)
    return blocks.split(at_once) if len(blocks) else ()


def _query_lists(concerned: Tensor, grid: _Grid) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Collects blocks that concern about as many queries each; concerned (blocks, Q) bool.

    Yields blocks (n,), their queries (n, C), ascending and filled up with any others, and which of these are meant
    (n, C).
    """
    block, query = concerned.nonzero(as_tuple=True)
    counts = torch.bincount(block, minlength=len(concerned))
    starts = counts.cumsum(0) - counts
    order = counts.argsort()
    sorted_counts = counts[order].tolist()
    stop = len(sorted_counts)
    while stop and sorted_counts[stop - 1]:
        most = sorted_counts[stop - 1]
        start = max(stop - _blocks_at_once(grid, most), bisect_left(sorted_counts, most // 2 + 1))
        blocks = order[start:stop]
        place = torch.arange(most, device=block.device)
        listed = place < counts[blocks, None]
        yield blocks, query[(starts[blocks, None] + place).clamp(max=len(query) - 1)], listed
        stop = start


def _count(pixels: Tensor, covered: Tensor) -> Tensor:
    """Pixels that each query covers, (Q,) int64, of n places of some pixels each; pixels (n,), covered (n, Q) bool.

    As a product of float32, many times faster than a sum of integers, and exact for up to 2^24 pixels.
    """
    return (pixels.float() @ covered.float()).long()


def _block_position(band: _Band, grid: _Grid, blocks: Tensor) -> tuple[Tensor, Tensor]:
    return band.start + blocks // grid.columns.blocks, blocks % grid.columns.blocks


def _pixel_weights(grid: _Grid, row: Tensor, column: Tensor) -> Tensor:
    """What each pixel of some blocks takes from each cell that its block reads: (n, pixels of a block, cells)."""
    return grid.row_weights.index_select(0, row).mul_(grid.column_weights.index_select(0, column))


def _logits_in_blocks(band: _Band, grid: _Grid, row: Tensor, column: Tensor) -> Tensor:
    """Interpolated logits of all queries at all pixels of some blocks: (n, pixels of a block, Q)."""
    cells = band.cells[(grid.rows.cells[row] - band.first_row)[:, :, None], grid.columns.cells[column][:, None, :]]
    return torch.bmm(_pixel_weights(grid, row, column), cells.flatten(1, 2))


def _listed_logits(band: _Band, grid: _Grid, row: Tensor, column: Tensor, queries: Tensor) -> Tensor:
    """Interpolated logits of some queries (n, C) at all pixels of some blocks: (n, C, pixels of a block)."""
    cells = band.cells[
        (grid.rows.cells[row] - band.first_row)[:, None, :, None],
        grid.columns.cells[column][:, None, None, :],
        queries[:, :, None, None],
    ]
    return torch.bmm(cells.flatten(2), _pixel_weights(grid, row, column).transpose(1, 2))


def _inside_blocks(grid: _Grid, row: Tensor, column: Tensor) -> Tensor:
    """Which pixels of some blocks belong to the picture: (n, pixels of a block) bool."""
    return (grid.rows.inside[row][:, :, None] & grid.columns.inside[column][:, None, :]).flatten(1)


def _empty_canvas(grid: _Grid, dtype: torch.dtype) -> Tensor:
    rows, columns = grid.rows, grid.columns
    return torch.empty((rows.blocks, rows.block, columns.blocks, columns.block), dtype=dtype, device=rows.cells.device)


def _fill(canvas: Tensor, band: _Band, values: Tensor) -> None:
    """Gives each block of a band one value; values (blocks,)."""
    canvas[band.start : band.stop] = values.view(band.stop - band.start, 1, -1, 1).to(canvas.dtype)


def _paint(canvas: Tensor, row: Tensor, column: Tensor, values: Tensor) -> None:
    """Gives each pixel of some blocks its value; values (n * pixels of a block,) in any shape."""
    values = values.reshape(len(row), canvas.shape[1], canvas.shape[3]).to(canvas.dtype)
    canvas.permute(0, 2, 1, 3)[row, column] = values


def _crop(canvas: Tensor, grid: _Grid) -> Tensor:
    top, left = grid.rows.offset, grid.columns.offset
    picture = canvas.flatten(2).flatten(0, 1)
    return picture[top : top + grid.rows.length, left : left + grid.columns.length].contiguous()


class _MasksInBlocks(NamedTuple):
    """Masks of U queries as blocks: only those blocks are held in which a mask has pixels."""

    grid: _Grid
    block_row: Tensor  # (P,) P pairs of query and block
    block_column: Tensor  # (P,)
    pixels: Tensor  # (P, block, block) bool
    order: Tensor  # (P,) the pairs, query by query
    pairs: list[int]  # per query, where its pairs begin in this order; one more than queries
    area: Tensor  # (U,) int64
    probability_sum: Tensor  # (U,) float32, of mask probabilities inside the mask
    boxes: Tensor  # (U, 4) float32

    def draw(self, queries: list[int]) -> Tensor:
        """The full masks of some queries, (N, H, W) bool."""
        rows, columns = self.grid.rows, self.grid.columns
        masks = torch.zeros((len(queries), rows.length, columns.length), dtype=torch.bool, device=self.pixels.device)
        boxes = self.boxes.int().tolist()
        for mask, query in zip(masks, queries, strict=True):
            left, top, right, bottom = boxes[query]
            pairs = self.order[self.pairs[query] : self.pairs[query + 1]]
            # A canvas of the blocks that the box touches, drawn and then cut to the box.
            first_row, first_column = (top + rows.offset) // rows.block, (left + columns.offset) // columns.block
            last_row = (bottom - 1 + rows.offset) // rows.block
            last_column = (right - 1 + columns.offset) // columns.block
            canvas = self.pixels.new_zeros(
                last_row - first_row + 1, rows.block, last_column - first_column + 1, columns.block
            )
            row, column = self.block_row[pairs] - first_row, self.block_column[pairs] - first_column
            canvas.permute(0, 2, 1, 3)[row, column] = self.pixels.index_select(0, pairs)
            y, x = top - (first_row * rows.block - rows.offset), left - (first_column * columns.block - columns.offset)
            picture = canvas.flatten(2).flatten(0, 1)
            mask[top:bottom, left:right] = picture[y : y + bottom - top, x : x + right - left]
        return masks


def _masks_in_blocks(mask_logits: Tensor, geometry: ImageGeometry, limit: float) -> _MasksInBlocks:
    """Thresholds the logits of U queries at full resolution, in the blocks where they may exceed the limit."""
    device = mask_logits.device
    grid = _make_grid(mask_logits, geometry)
    queries = len(mask_logits)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    found: list[tuple[Tensor, ...]] = [(none, none, none, none.bool().view(0, grid.block_pixels))]
    probability_sum = torch.zeros(queries, device=device)
    area = torch.zeros(queries, dtype=torch.int64, device=device)
    with _full_precision(mask_logits):
        for band in _bands(mask_logits, grid):
            for blocks, query, listed in _query_lists(band.high > limit, grid):
                row, column = _block_position(band, grid, blocks)
                logits = _listed_logits(band, grid, row, column, query)
                pixels = (logits > limit) & _inside_blocks(grid, row, column)[:, None]
                ones = pixels.float()  # much faster to multiply by and to sum up
                counts = (ones.sum(-1) * listed).flatten()
                sums = (logits.sigmoid_().mul_(ones).sum(-1) * listed).flatten()
                area.index_add_(0, query.flatten(), counts.long())
                probability_sum.index_add_(0, query.flatten(), sums)
                hit = counts.nonzero()[:, 0]
                block = hit // query.shape[1]
                pixels = pixels.flatten(0, 1).index_select(0, hit)
                found.append((query.flatten()[hit], row[block], column[block], pixels))
    query, row, column, pixels = (torch.cat(parts) for parts in zip(*found, strict=True))
    pixels = pixels.unflatten(1, (grid.rows.block, grid.columns.block))
    left, right = _extent(grid.columns, query, column, pixels, 1, queries)
    top, bottom = _extent(grid.rows, query, row, pixels, 2, queries)
    boxes = torch.stack([left, top, right, bottom], dim=1).float()
    query, order = query.sort()
    pairs = torch.searchsorted(query, torch.arange(queries + 1, device=device)).tolist()
    return _MasksInBlocks(grid, row, column, pixels, order, pairs, area, probability_sum, boxes)


def _extent(
    axis: _Axis, query: Tensor, block: Tensor, pixels: Tensor, across: int, queries: int
) -> tuple[Tensor, Tensor]:
    """First pixel and last pixel + 1 of each query along one axis, (U,) each, 0 and 0 for an empty mask.

    query, block (P,) along this axis and pixels (P, block, block), all of which have some; across is the other axis
    of pixels.
    """
    first = query.new_full((queries,), axis.blocks).scatter_reduce_(0, query, block, "amin")
    last = query.new_full((queries,), -1).scatter_reduce_(0, query, block, "amax")
    at_end = ((block == first[query]) | (block == last[query])).nonzero()[:, 0]
    hits = torch.zeros(queries * axis.blocks, axis.block, dtype=torch.int32, device=query.device)
    hits.index_add_(0, query[at_end] * axis.blocks + block[at_end], pixels[at_end].any(across).int())
    touched = (hits.view(queries, axis.blocks * axis.block)[:, axis.offset : axis.offset + axis.length] > 0).int()
    start, stop = touched.argmax(1), axis.length - touched.flip(1).argmax(1)
    return start, stop * touched.amax(1)


def _class_probabilities(class_logits: Tensor) -> Tensor:
    """Softmax over K classes and no-object, (Q, K + 1) float32; refuses logits that are not finite."""
    class_logits = class_logits.float()
    if not bool(torch.isfinite(class_logits).all()):
        raise ValueError("class_queries_logits hold NaN or infinity; check the weights and the pixel values.")
    return class_logits.softmax(-1)


def _logit(probability: float) -> float:
    """The logit of a threshold, infinite at 0 and 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"mask_threshold={probability} is no probability; choose one from 0 to 1.")
    if probability in (0, 1):
        return -math.inf if probability == 0 else math.inf
    return math.log(probability / (1 - probability))


def _touched(weights: Tensor) -> tuple[Tensor, int]:
    """Drops the columns of zeros on both sides; also returns where the rest begins."""
    used = (weights != 0).any(0).nonzero()[:, 0]
    first, last = int(used[0]), int(used[-1])
    return weights[:, first : last + 1], first


def _resize_width(values: Tensor, width: int) -> Tensor:
    if values.shape[-1] == width:
        return values
    return F.interpolate(values[None], size=(values.shape[-2], width), mode="bilinear", align_corners=False)[0]


def _budget(device: torch.device) -> int:
    return CPU_BUDGET if device.type == "cpu" else DEVICE_BUDGET


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast would run the matrix products in half precision, below the margin that decides blocks."""
    return torch.autocast(tensor.device.type, enabled=False)
