"""Masks that need not exist: whatever is asked of products is what the same logits would give."""

import pytest
import torch

from maskformer_hf.models.masks import DenseMasks, ProductMasks

LAYERS, IMAGES, QUERIES, CHANNELS, SIZE = 3, 2, 5, 4, (6, 7)


@pytest.fixture(params=[(), (2,)], ids=["images", "clips"])
def masks(request) -> tuple[ProductMasks, DenseMasks]:
    torch.manual_seed(0)
    mask_embeddings = torch.randn(LAYERS, IMAGES, QUERIES, CHANNELS)
    pixel_embeddings = torch.randn(IMAGES, *request.param, CHANNELS, *SIZE)
    product = ProductMasks(mask_embeddings, pixel_embeddings)
    return product, DenseMasks(torch.stack([product.layer(layer) for layer in range(LAYERS)]))


def test_layers_and_images(masks):
    product, dense = masks
    assert product.shape == dense.shape == dense.logits_LBQhw.shape
    assert product.device == dense.device
    queries = torch.tensor([3, 0])
    for layer in range(LAYERS):
        for image in range(IMAGES):
            torch.testing.assert_close(product.image(layer, image, queries), dense.image(layer, image, queries))


def test_an_image_behaves_as_a_tensor(masks):
    for some in masks:
        image, logits = some[1], some.layer(-1)[1]
        assert image.shape == logits.shape
        assert image.device == logits.device
        for queries in (torch.tensor([4, 1, 1]), slice(None), slice(1, 3), torch.zeros(0, dtype=torch.int64)):
            torch.testing.assert_close(image[queries], logits[queries])


def test_parts(masks):
    for some in masks:
        part = some.part(layers=slice(-1, None), queries=slice(2, None))
        assert part.shape[:3] == (1, IMAGES, QUERIES - 2)
        torch.testing.assert_close(part.layer(0), some.layer(-1)[:, 2:])
        assert some.part().float().shape == some.shape


def test_matched_masks_have_gradients(masks):
    product, dense = masks
    query_LM = torch.tensor([[0, 4, 2], [1, 2, 0]])
    matched = [some.matched(slice(1, 3), query_LM, [2, 1]) for some in (product, dense)]
    torch.testing.assert_close(*matched)
    torch.testing.assert_close(matched[0][1, 2], dense.logits_LBQhw[2, 1, 0])
    leaf = product.mask_embeddings_LBQC.clone().requires_grad_()
    ProductMasks(leaf, product.pixel_embeddings_BChw).matched(
        slice(None), query_LM.repeat(2, 1)[:3], [2, 1]
    ).sum().backward()
    assert (leaf.grad.abs().sum(-1) > 0).sum() == 9


@pytest.mark.parametrize("with_points", [False, True])
def test_values_are_read_a_part_at_a_time(masks, with_points):
    product, dense = masks
    points = torch.rand(LAYERS, 11, 2) if with_points else None
    rows = 0
    for ours, plain in zip(product.values(1, points), dense.values(1, points), strict=True):
        assert (ours.layers, ours.num_rows, ours.num_values) == (plain.layers, plain.num_rows, plain.num_values)
        read = []
        for values in (ours, plain):
            parts = [slice(0, 5), slice(5, values.num_values)]
            memory = [torch.empty(values.num_rows, part.stop - part.start) for part in parts]
            for part, out in zip(parts, memory, strict=True):
                values.read_negated(part, out)
            read.append(torch.cat(memory, dim=1))
        torch.testing.assert_close(*read)
        if not with_points:
            torch.testing.assert_close(read[0], -dense.logits_LBQhw[:, 1].flatten(2).flatten(0, 1))
        rows += ours.num_rows
    assert rows == LAYERS * QUERIES
