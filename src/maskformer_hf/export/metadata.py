"""What an exported file says of itself."""

import json
from typing import Any


def metadata_of(model: Any, processor: Any, post_process: bool, static_size: tuple[int, int] | None) -> dict[str, str]:
    """What a caller must know to feed the file and to read its results."""
    config = model.config
    height, width = static_size or ("height", "width")
    output = (
        "segmentation: (batch, height, width) int64, the class of each pixel of the padded input"
        if post_process
        else "class_queries_logits: (batch, queries, classes + 1), no-object last; "
        "masks_queries_logits: (batch, queries, ceil(height / 4), ceil(width / 4))"
    )
    return {
        "task": "semantic" if post_process else config.task,
        "input": f"pixel_values: (batch, {config.num_channels}, {height}, {width}) float32, RGB, "
        "(value * rescale_factor - image_mean) / image_std, then zeros on the right and below up to size_divisor",
        "output": output,
        "class_names": json.dumps([config.id2label[label] for label in range(config.num_labels)]),
        "label_ids_to_fuse": json.dumps(config.label_ids_to_fuse or []),
        "rescale_factor": json.dumps(processor.rescale_factor),
        "image_mean": json.dumps(list(processor.image_mean)),
        "image_std": json.dumps(list(processor.image_std)),
        "size": json.dumps(dict(processor.size)),
        "size_divisor": json.dumps(processor.size_divisor),
    }
