"""FaPN's pixel decoder in its three forms, at the coarsest two levels of the original's. Tolerances: the README of the
numbers, tests/fixtures/golden/README.md."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskformer_hf.models.interfaces import Facts
from maskformer_hf.models.pixel_decoder_fapn import FORMS, FaPNPixelDecoder

NUMBERS = load_file(Path(__file__).parent.parent / "fixtures" / "golden" / "fapn.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_equal_to_the_original(form):
    decoder = FaPNPixelDecoder(Facts((32, 48), (16, 32)), 32, 24, FORMS[form])
    start = f"{form}.state."
    state = {name.removeprefix(start): value for name, value in NUMBERS.items() if name.startswith(start)}
    result = decoder.load_state_dict(state, strict=False)
    # What comes behind the numbers that there are.
    behind = {"mask_projection.weight", "mask_projection.bias"}
    assert set(result.missing_keys) == behind | ({"outputs.0.0.weight"} if form == "maskformer" else set())
    assert not result.unexpected_keys
    seen = {}
    decoder.alignments[0].register_forward_hook(lambda module, inputs, result: seen.update(aligned=result))
    with torch.no_grad():
        maps = decoder.pyramid((NUMBERS["odd.res4"], NUMBERS["odd.res5"]))
    seen |= {"p5": maps[0], "p4": maps[1]}
    expected = {name: value for name in seen if (value := NUMBERS.get(f"{form}.{name}")) is not None}
    assert len(expected) == {"maskformer": 1, "detection": 3, "detection_norm": 2}[form]
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, rtol=0, atol=2e-5)
