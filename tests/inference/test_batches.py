"""Which items share a batch, and when they are taken."""

import pytest
import torch

from maskformer_hf.inference.batches import evaluation_mode, same_size_batches


def test_batches_are_of_one_size_and_complete_ones_come_first():
    words = ["a", "bb", "c", "dd", "e", "fff"]
    assert list(same_size_batches(words, len, 2)) == [["a", "c"], ["bb", "dd"], ["e"], ["fff"]]
    assert list(same_size_batches(words, len)) == [["a", "c", "e"], ["bb", "dd"], ["fff"]]
    assert list(same_size_batches([], len, 2)) == []


def test_items_are_taken_as_they_are_needed():
    taken = []

    def words():
        for word in ("a", "b", "c", "d"):
            taken.append(word)
            yield word

    batches = same_size_batches(words(), len, 2)
    assert next(batches) == ["a", "b"]
    assert taken == ["a", "b"]


def test_every_module_gets_its_mode_back_even_after_an_error():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    model[0].eval()

    def fail():
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, False, True]
