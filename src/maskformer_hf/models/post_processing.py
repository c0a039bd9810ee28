"""Post-processing as pure functions: query logits in, semantic, instance and panoptic segmentations out.

The order is that of the original MaskFormer and Mask2Former (`mask_former_model.py`, `maskformer_model.py`): mask
logits are resized bilinearly to the padded input, cropped to the picture, resized to the target size, and only then
turned into probabilities and compared with thresholds.

Shapes: Q queries, K classes, h w mask cells, H W target pixels. Mask logits may have any floating dtype and live on any
device; all arithmetic is float32.

How the full resolution is avoided. Bilinear interpolation cannot leave the range of the cells that it mixes. So the
target is cut into blocks of about two by two mask cells, each query gets its smallest and largest logit per block,
and from these follow bounds of every score that hold for all pixels of the block. Where the bounds already name the
winner the block is filled; only the other blocks, mostly along outlines, are computed pixel by pixel. The result is
that of the plain computation, except that pixels whose two best scores differ by less than `MARGIN` may go either
way, as they do between two machines.
"""

import math
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
CPU_BUDGET = 2**20
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
    """Reads the sizes of each image of a batch from model outputs.

    Without `outputs.padded_sizes` the padded input is taken to be four times as large as the mask logits, without
    `outputs.image_sizes` the images are taken to be unpadded. Without target sizes the result has the image size.
    Raises ValueError for sizes that contradict each other, naming the image.
    """
    batch_size, _, mask_height, mask_width = outputs.masks_queries_logits.shape
    default = [(4 * mask_height, 4 * mask_width)] * batch_size
    padded_sizes = _size_list(getattr(outputs, "padded_sizes", None), default, "padded_sizes")
    image_sizes = _size_list(getattr(outputs, "image_sizes", None), padded_sizes, "image_sizes")
    targets = _size_list(target_sizes, image_sizes, "target_sizes")
    for index, (padded, image) in enumerate(zip(padded_sizes, image_sizes, strict=True)):
        if image[0] > padded[0] or image[1] > padded[1]:
            raise ValueError(f"Image {index}: image size {image} is larger than the padded size {padded}.")
    return [ImageGeometry(*sizes) for sizes in zip(padded_sizes, image_sizes, targets, strict=True)]


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
    rows, columns = _block_axes(mask_logits, geometry)
    canvas = _empty_canvas(rows, columns, torch.int64, mask_logits.device)
    with _full_precision(mask_logits):
        for band in _bands(mask_logits, rows, columns):
            lower = band.low.sigmoid_() @ probabilities
            upper = band.high.sigmoid_() @ probabilities
            best, winner = lower.max(1)
            upper.scatter_(1, winner[:, None], -1.0)
            undecided = (best <= upper.amax(1) + MARGIN).nonzero()[:, 0]
            _fill(canvas, band, winner)
            for blocks in _chunks(undecided, rows, columns, max(probabilities.shape)):
                # Of the many classes only those are compared that can win a pixel of these blocks.
                possible = (upper[blocks] >= best[blocks, None] - MARGIN).any(0)
                possible[winner[blocks]] = True
                classes = possible.nonzero()[:, 0]
                masks = _logits_in_blocks(band, rows, columns, blocks).sigmoid_()
                scores = masks.flatten(0, 1) @ probabilities[:, classes]
                _paint(canvas, band, blocks, classes[scores.argmax(1)])
    return _crop(canvas, rows, columns)


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
    rows, columns = _block_axes(mask_logits, geometry)
    # Holds k for pixels that query k won and that its own mask covers, and k + number of queries for others that it
    # won.
    canvas = _empty_canvas(rows, columns, torch.int32, mask_logits.device)
    mask_areas = torch.zeros(len(kept), dtype=torch.int64, device=mask_logits.device)
    pixels = (rows.inside.sum(1)[:, None] * columns.inside.sum(1)).flatten()
    with _full_precision(mask_logits):
        for band in _bands(mask_logits[kept], rows, columns):
            covered = band.low >= limit
            lower, upper = band.low.sigmoid_().mul_(scores), (band.high.sigmoid() * scores)
            best, winner = lower.max(1)
            upper.scatter_(1, winner[:, None], -1.0)
            partly_covered = ((band.high >= limit) & ~covered).any(1)
            needs_pixels = (best <= upper.amax(1) + MARGIN) | partly_covered
            covered &= ~needs_pixels[:, None]
            mask_areas += _count(pixels[band.start * columns.blocks : band.stop * columns.blocks], covered)
            own = covered.gather(1, winner[:, None])[:, 0]
            _fill(canvas, band, torch.where(own, winner, winner + len(kept)))
            for blocks in _chunks(needs_pixels.nonzero()[:, 0], rows, columns, len(scores)):
                logits = _logits_in_blocks(band, rows, columns, blocks)
                covers = logits >= limit
                winner = (logits.sigmoid_().mul_(scores)).argmax(-1)
                own = covers.gather(2, winner[..., None])[..., 0]
                _paint(canvas, band, blocks, torch.where(own, winner, winner + len(kept)))
                mask_areas += _count(_inside_blocks(band, rows, columns, blocks).flatten(), covers.flatten(0, 1))
    ids = _crop(canvas, rows, columns)
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
        window.masked_fill_(free, ids * draw)  # an id of 0 changes nothing here
    return segmentation, drawn


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


class _Band(NamedTuple):
    """Some rows of blocks with all that belongs to them; blocks are numbered row by row within the band."""

    start: int
    stop: int
    cells: Tensor  # (rows, w, Q) float32 mask logits
    first_row: int
    low: Tensor  # (blocks, Q) smallest logit in reach of a block
    high: Tensor  # (blocks, Q) largest


def _block_axes(mask_logits: Tensor, geometry: ImageGeometry) -> tuple[_Axis, _Axis]:
    padded, image, target = geometry
    device = mask_logits.device
    return (
        _block_axis(mask_logits.shape[-2], padded[0], image[0], target[0], device),
        _block_axis(mask_logits.shape[-1], padded[1], image[1], target[1], device),
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


def _bands(mask_logits: Tensor, rows: _Axis, columns: _Axis) -> Iterator[_Band]:
    """Cuts the picture into bands of block rows; the bounds of the last band are free to be overwritten."""
    queries, _, width = mask_logits.shape
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
            raise ValueError("masks_queries_logits hold NaN or infinity; check the weights and the pixel values.")
        yield _Band(start, stop, cells, first_row, low, high)


def _pool(cells: Tensor, row_cells: Tensor, column_cells: Tensor, operation: Any) -> Tensor:
    """Minimum or maximum over the cells that each block reads: (rows, w, Q) -> (blocks, Q)."""
    for dim, index in enumerate((row_cells, column_cells)):
        pooled = cells.index_select(dim, index[:, 0])
        for offset in range(1, index.shape[1]):
            operation(pooled, cells.index_select(dim, index[:, offset]), out=pooled)
        cells = pooled
    return cells.flatten(0, 1)


def _chunks(blocks: Tensor, rows: _Axis, columns: _Axis, values_per_pixel: int) -> Sequence[Tensor]:
    """Cuts a list of blocks so that the values of all their pixels fit the budget; an empty list has no parts."""
    at_once = max(1, _budget(blocks.device) // (rows.block * columns.block * values_per_pixel))
    return blocks.split(at_once) if len(blocks) else ()


def _count(pixels: Tensor, covered: Tensor) -> Tensor:
    """Pixels that each query covers, (Q,) int64, of (n,) places of some pixels each; covered (n, Q) bool.

    As a product of float32, many times faster than a sum of integers, and exact for up to 2^24 pixels.
    """
    return (pixels.float() @ covered.float()).long()


def _block_position(band: _Band, columns: _Axis, blocks: Tensor) -> tuple[Tensor, Tensor]:
    return band.start + blocks // columns.blocks, blocks % columns.blocks


def _logits_in_blocks(band: _Band, rows: _Axis, columns: _Axis, blocks: Tensor) -> Tensor:
    """Interpolated logits of all queries at all pixels of some blocks: (blocks, pixels of a block, Q)."""
    row, column = _block_position(band, columns, blocks)
    cells = band.cells[(rows.cells[row] - band.first_row)[:, :, None], columns.cells[column][:, None, :]]
    weights = rows.weights[row][:, :, None, :, None] * columns.weights[column][:, None, :, None, :]
    return torch.bmm(weights.flatten(3).flatten(1, 2), cells.flatten(1, 2))


def _inside_blocks(band: _Band, rows: _Axis, columns: _Axis, blocks: Tensor) -> Tensor:
    """Which pixels of some blocks belong to the picture: (blocks, pixels of a block) bool."""
    row, column = _block_position(band, columns, blocks)
    return (rows.inside[row][:, :, None] & columns.inside[column][:, None, :]).flatten(1)


def _empty_canvas(rows: _Axis, columns: _Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty((rows.blocks, rows.block, columns.blocks, columns.block), dtype=dtype, device=device)


def _fill(canvas: Tensor, band: _Band, values: Tensor) -> None:
    """Gives each block of a band one value; values (blocks,)."""
    canvas[band.start : band.stop] = values.view(band.stop - band.start, 1, -1, 1).to(canvas.dtype)


def _paint(canvas: Tensor, band: _Band, blocks: Tensor, values: Tensor) -> None:
    """Gives each pixel of some blocks its value; values (blocks * pixels of a block,) in any shape."""
    columns = canvas.shape[2]
    view = canvas.permute(0, 2, 1, 3)
    values = values.reshape(len(blocks), canvas.shape[1], canvas.shape[3]).to(canvas.dtype)
    view[band.start + blocks // columns, blocks % columns] = values


def _crop(canvas: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    picture = canvas.view(rows.blocks * rows.block, columns.blocks * columns.block)
    top, left = rows.offset, columns.offset
    return picture[top : top + rows.length, left : left + columns.length].contiguous()


class _MasksInBlocks(NamedTuple):
    """Masks of U queries as blocks: only those blocks are held in which a mask has pixels."""

    rows: _Axis
    columns: _Axis
    block_row: Tensor  # (P,) P pairs of query and block, query by query
    block_column: Tensor  # (P,)
    pixels: Tensor  # (P, block, block) bool
    pairs: list[int]  # per query, where its pairs begin; one more than queries
    area: Tensor  # (U,) int64
    probability_sum: Tensor  # (U,) float32, of mask probabilities inside the mask
    boxes: Tensor  # (U, 4) float32

    def draw(self, queries: list[int]) -> Tensor:
        """The full masks of some queries, (N, H, W) bool."""
        rows, columns = self.rows, self.columns
        masks = torch.zeros((len(queries), rows.length, columns.length), dtype=torch.bool, device=self.pixels.device)
        boxes = self.boxes.int().tolist()
        for mask, query in zip(masks, queries, strict=True):
            left, top, right, bottom = boxes[query]
            pairs = slice(self.pairs[query], self.pairs[query + 1])
            # A canvas of the blocks that the box touches, drawn and then cut to the box.
            first_row, first_column = (top + rows.offset) // rows.block, (left + columns.offset) // columns.block
            last_row = (bottom - 1 + rows.offset) // rows.block
            last_column = (right - 1 + columns.offset) // columns.block
            canvas = self.pixels.new_zeros(
                last_row - first_row + 1, rows.block, last_column - first_column + 1, columns.block
            )
            row, column = self.block_row[pairs] - first_row, self.block_column[pairs] - first_column
            canvas.permute(0, 2, 1, 3)[row, column] = self.pixels[pairs]
            y, x = top - (first_row * rows.block - rows.offset), left - (first_column * columns.block - columns.offset)
            picture = canvas.flatten(2).flatten(0, 1)
            mask[top:bottom, left:right] = picture[y : y + bottom - top, x : x + right - left]
        return masks


def _masks_in_blocks(mask_logits: Tensor, geometry: ImageGeometry, limit: float) -> _MasksInBlocks:
    """Thresholds the logits of U queries at full resolution, in the blocks where they may exceed the limit."""
    device = mask_logits.device
    rows, columns = _block_axes(mask_logits, geometry)
    queries = len(mask_logits)
    found: list[tuple[Tensor, ...]] = []
    probability_sum = torch.zeros(queries, device=device)
    with _full_precision(mask_logits):
        for band in _bands(mask_logits, rows, columns):
            reached = (band.high > limit).nonzero()
            for block, query in (pairs.unbind(1) for pairs in _chunks(reached, rows, columns, 1)):
                row, column = _block_position(band, columns, block)
                cells = band.cells[
                    (rows.cells[row] - band.first_row)[:, :, None],
                    columns.cells[column][:, None, :],
                    query[:, None, None],
                ]
                logits = torch.bmm(torch.bmm(rows.weights[row], cells), columns.weights[column].transpose(1, 2))
                pixels = (logits > limit) & _inside_blocks(band, rows, columns, block).view_as(logits)
                probability_sum.index_add_(0, query, logits.sigmoid_().mul_(pixels).sum((1, 2)))
                hit = pixels.flatten(1).any(1).nonzero()[:, 0]
                found.append((query[hit], row[hit], column[hit], pixels[hit]))
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    if not found:
        found = [(empty, empty, empty, torch.zeros((0, rows.block, columns.block), dtype=torch.bool, device=device))]
    query, row, column, pixels = (torch.cat(parts) for parts in zip(*found, strict=True))
    query, order = query.sort(stable=True)
    row, column, pixels = row[order], column[order], pixels[order]
    pairs = torch.searchsorted(query, torch.arange(queries + 1, device=device)).tolist()
    area = torch.zeros(queries, dtype=torch.int64, device=device).index_add_(0, query, pixels.sum((1, 2)))
    left, right = _extent(columns, query, column, pixels.any(1), queries)
    top, bottom = _extent(rows, query, row, pixels.any(2), queries)
    boxes = torch.stack([left, top, right, bottom], dim=1).float()
    return _MasksInBlocks(rows, columns, row, column, pixels, pairs, area, probability_sum, boxes)


def _extent(axis: _Axis, query: Tensor, block: Tensor, hit: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """First pixel and last pixel + 1 of each query along one axis, (U,) each, 0 and 0 for an empty mask.

    hit (P, block) bool: which pixels of each pair's block belong to the mask.
    """
    hits = torch.zeros(queries * axis.blocks, axis.block, dtype=torch.int32, device=hit.device)
    hits.index_add_(0, query * axis.blocks + block, hit.int())
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
