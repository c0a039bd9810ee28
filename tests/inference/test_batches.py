"""Which items share a batch, and when they are taken."""

from maskformer_hf.inference.batches import same_size_batches


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
