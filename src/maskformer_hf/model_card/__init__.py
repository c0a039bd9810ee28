"""The model card of a checkpoint's folder: README.md, filled from the records that lie beside the weights.

| record | from | says |
|---|---|---|
| config.json, preprocessor_config.json, *.safetensors | `save_pretrained` | task, classes, parts, sizes |
| training.json | `maskformer train` | command, recipe, data, steps, time, machine, evaluation of these weights |
| evaluation.json | `maskformer evaluate FOLDER DATA -o FOLDER/evaluation.json` | a later evaluation, used instead |
| speed.json | `maskformer_hf.hub.measure_speed` | time for a photo, and the machine |
| model_card.yaml | its author | what no program knows: see `WORDS` in records.py |
"""

from .card import MARK, SAMPLE, SAMPLE_LICENCE, is_written_by_hand, write_model_card
from .records import RECORDS, WORDS

__all__ = ["MARK", "RECORDS", "SAMPLE", "SAMPLE_LICENCE", "WORDS", "is_written_by_hand", "write_model_card"]
