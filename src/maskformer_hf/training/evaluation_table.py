"""The figures of `evaluate` as text."""

from typing import Any, NamedTuple


class Column(NamedTuple):
    """A column of the table: `key` is that of `per_class`, a share is shown in percent."""

    heading: str
    key: str
    is_share: bool = True


# By task; those whose figure was not measured are left out.
TABLE_COLUMNS: dict[str, list[Column]] = {
    "semantic": [Column("IoU", "iou"), Column("boundary IoU", "boundary_iou"), Column("accuracy", "accuracy")],
    "instance": [
        Column("AP", "ap"),
        Column("AP50", "ap50"),
        Column("boundary AP", "boundary_ap"),
        Column("AR", "ar"),
        Column("objects", "objects", is_share=False),
    ],
    "video": [
        Column("AP", "ap"),
        Column("AP50", "ap50"),
        Column("AR", "ar"),
        Column("objects", "objects", is_share=False),
    ],
    "panoptic": [
        Column("PQ", "pq"),
        Column("SQ", "sq"),
        Column("RQ", "rq"),
        Column("found", "true_positives", is_share=False),
        Column("missed", "false_negatives", is_share=False),
        Column("false", "false_positives", is_share=False),
    ],
}


def format_table(result: dict[str, Any]) -> str:
    """The figures of `evaluate` as text: a line for each class, shares in percent, and the means below."""
    rows = [dict(row) for row in result["per_class"]]
    columns = [column for column in TABLE_COLUMNS[result["task"]] if column.key in rows[0]]
    if result["task"] == "semantic":
        pixels = sum(row["pixels"] for row in rows) or 1
        columns.append(Column("share", "share"))
        for row in rows:
            row["share"] = row["pixels"] / pixels
    width = max(5, *(len(row["label"]) for row in rows))
    lines = ["  ".join([f"{'class':{width}}", *(f"{column.heading:>6}" for column in columns)])]
    for row in rows:
        cells = [f"{_cell(row[column.key], column):>{max(6, len(column.heading))}}" for column in columns]
        lines.append("  ".join([f"{row['label']:{width}}", *cells]))
    return "\n".join([*lines, *SUMMARIES[result["task"]](result)])


def _cell(value: float, column: Column) -> str:
    if value != value:  # NaN
        return "-"
    return f"{value:.1%}" if column.is_share else str(value)


def _percent(result: dict[str, Any], *names: str) -> list[str]:
    """AP, PQ and J are published as percentages without the sign, IoU as a share of 1."""
    return [f"{100 * result[name]:.1f}" if result[name] == result[name] else "-" for name in names]


def _speed(result: dict[str, Any]) -> str:
    return f"({result['images']} images, {result['images_per_second']:.1f} a second)"


def _semantic_summary(result: dict[str, Any]) -> list[str]:
    boundary = f", boundary IoU {result['boundary_iou']:.4f}" if "boundary_iou" in result else ""
    return [
        f"mean IoU {result['mean_iou']:.4f}, pixel accuracy {result['pixel_accuracy']:.4f}, mean accuracy "
        f"{result['mean_accuracy']:.4f}, frequency-weighted IoU {result['frequency_weighted_iou']:.4f}{boundary} "
        + _speed(result)
    ]


def _instance_summary(result: dict[str, Any]) -> list[str]:
    lines = []
    for prefix, title in (("", "mask"), ("boundary_", "boundary")):
        if f"{prefix}ap" not in result:
            continue
        keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
        cells = _percent(result, *(prefix + key for key in keys))
        names = ("AP", "AP50", "AP75", "small", "medium", "large", f"AR at {result['max_detections']}")
        lines.append(f"{title} " + ", ".join(f"{name} {cell}" for name, cell in zip(names, cells, strict=True)))
    return [*lines, _speed(result)]


def _panoptic_summary(result: dict[str, Any]) -> list[str]:
    lines = [f"{'':8}      PQ      SQ      RQ"]
    for name, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
        cells = _percent(result, *(f"{figure}{suffix}" for figure in ("pq", "sq", "rq")))
        lines.append(f"{name:8}" + "".join(f"{cell:>8}" for cell in cells))
    return [*lines, _speed(result)]


def _video_summary(result: dict[str, Any]) -> list[str]:
    names = ("AP", "AP50", "AP75", "AR at 10")
    figures = zip(names, _percent(result, "ap", "ap50", "ap75", "ar_10"), strict=True)
    [similarity, flicker] = _percent(result, "j", "flicker")
    return [
        f"video {', '.join(f'{name} {cell}' for name, cell in figures)}, J {similarity}, flicker {flicker} "
        f"({result['method']}: {result['videos']} videos, {result['frames']} frames, "
        f"{result['frames_per_second']:.1f} a second)"
    ]


SUMMARIES = {
    "semantic": _semantic_summary,
    "instance": _instance_summary,
    "panoptic": _panoptic_summary,
    "video": _video_summary,
}
