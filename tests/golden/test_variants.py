"""What the stored cases leave out, against small independent forms of the original's parts in plain PyTorch: pre-norm,
an encoder in the predictor, a forced projection of the memory, ResNets with the stride in the 1x1 convolution or with
DeepLab's stem and dilations (R101c), and Swin's absolute position embeddings.

The forms below carry the original's parameter names, so that their weights pass the conversion.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskformer_hf.conversion.detectron2 import convert_state_dict
from maskformer_hf.conversion.detectron2_config import RESNET_DEPTHS, config_from_detectron2
from maskformer_hf.conversion.detectron2_names import tensor_names
from maskformer_hf.models.modeling_maskformer import MaskFormerHfForUniversalSegmentation

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"


class ConvNorm(nn.Conv2d):
    def __init__(self, norm: nn.Module, *sizes: int, **options: int):
        super().__init__(*sizes, bias=False, **options)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


def conv_batch_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1):
    padding = dilation * (kernel_size // 2)
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    return ConvNorm(nn.BatchNorm2d(out_channels), in_channels, out_channels, kernel_size, **options)


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, stride_in_1x1: bool):
        super().__init__()
        width = out_channels // 4
        self.conv1 = conv_batch_norm(in_channels, width, 1, stride=stride if stride_in_1x1 else 1)
        self.conv2 = conv_batch_norm(width, width, 3, stride=1 if stride_in_1x1 else stride, dilation=dilation)
        self.conv3 = conv_batch_norm(width, out_channels, 1)
        if in_channels != out_channels:
            self.shortcut = conv_batch_norm(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(x) if hasattr(self, "shortcut") else x
        return F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))) + residual)


class ResNet(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        resnets, deeplab = cfg["RESNETS"], cfg["BACKBONE"]["NAME"] == "build_resnet_deeplab_backbone"
        channels = resnets["STEM_OUT_CHANNELS"]
        self.stem = nn.Module()
        if deeplab and resnets["STEM_TYPE"] == "deeplab":
            self.stem.conv1 = conv_batch_norm(3, channels // 2, 3, stride=2)
            self.stem.conv2 = conv_batch_norm(channels // 2, channels // 2, 3)
            self.stem.conv3 = conv_batch_norm(channels // 2, channels, 3)
        else:
            self.stem.conv1 = conv_batch_norm(3, channels, 7, stride=2)
        self.channels = []
        for i, depth in enumerate(RESNET_DEPTHS[resnets["DEPTH"]]):
            out_channels = resnets["RES2_OUT_CHANNELS"] * 2**i
            dilations = resnets["RES5_MULTI_GRID"] if deeplab and i == 3 else [1] * depth
            blocks = []
            for block, dilation in enumerate(dilations):
                stride = 2 if block == 0 and i > 0 else 1
                blocks.append(Bottleneck(channels, out_channels, stride, dilation, resnets["STRIDE_IN_1X1"]))
                channels = out_channels
            self.add_module(f"res{i + 2}", nn.Sequential(*blocks))
            self.channels.append(channels)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        for convolution in self.stem.children():
            x = F.relu(convolution(x))
        features = [F.max_pool2d(x, 3, stride=2, padding=1)]
        for i in range(2, 6):
            features.append(getattr(self, f"res{i}")(features[-1]))
        return features[1:]


def sine_positions(height: int, width: int, channels: int) -> torch.Tensor:
    """(1, height * width, channels), number by number."""
    half = channels // 2

    def encode(position: int, size: int) -> list[float]:
        angle = (position + 1) / (size + 1e-6) * 2 * math.pi
        angles = [angle / 10000 ** (2 * (i // 2) / half) for i in range(half)]
        return [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)]

    return torch.tensor([[encode(y, height) + encode(x, width) for y in range(height) for x in range(width)]])


class TransformerLayer(nn.Module):
    def __init__(self, former: dict, width: int, cross: bool):
        super().__init__()
        self.pre_norm = former["PRE_NORM"]
        self.self_attn = nn.MultiheadAttention(width, former["NHEADS"], batch_first=True)
        if cross:
            self.multihead_attn = nn.MultiheadAttention(width, former["NHEADS"], batch_first=True)
            self.norm3 = nn.LayerNorm(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, former["DIM_FEEDFORWARD"])
        self.linear2 = nn.Linear(former["DIM_FEEDFORWARD"], width)

    def sublayer(self, x: torch.Tensor, norm: nn.Module, function) -> torch.Tensor:
        return x + function(norm(x)) if self.pre_norm else norm(x + function(x))

    def forward(self, x, position, memory=None, memory_position=None) -> torch.Tensor:
        def attend_to_itself(y: torch.Tensor) -> torch.Tensor:
            return self.self_attn(y + position, y + position, y)[0]

        def attend_to_memory(y: torch.Tensor) -> torch.Tensor:
            return self.multihead_attn(y + position, memory + memory_position, memory)[0]

        def feed_forward(y: torch.Tensor) -> torch.Tensor:
            return self.linear2(F.relu(self.linear1(y)))

        x = self.sublayer(x, self.norm1, attend_to_itself)
        if memory is None:
            return self.sublayer(x, self.norm2, feed_forward)
        x = self.sublayer(x, self.norm2, attend_to_memory)
        return self.sublayer(x, self.norm3, feed_forward)


class TransformerStack(nn.Module):
    def __init__(self, former: dict, width: int, num_layers: int, cross: bool):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(former, width, cross) for _ in range(num_layers))
        if cross or former["PRE_NORM"]:
            self.norm = nn.LayerNorm(width)

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) if hasattr(self, "norm") else x


class PixelDecoder(nn.Module):
    def __init__(self, cfg: dict, channels: list[int]):
        super().__init__()
        head, former = cfg["SEM_SEG_HEAD"], cfg["MASK_FORMER"]
        width = head["CONVS_DIM"]
        self.with_encoder = head["PIXEL_DECODER_NAME"] == "TransformerEncoderPixelDecoder"
        if self.with_encoder:
            self.input_proj = nn.Conv2d(channels[-1], width, 1)
            self.transformer = nn.Module()
            self.transformer.encoder = TransformerStack(former, width, head["TRANSFORMER_ENC_LAYERS"], cross=False)
        for i, in_channels in enumerate(channels[:3]):
            self.add_module(f"adapter_{i + 1}", ConvNorm(nn.GroupNorm(32, width), in_channels, width, 1))
            self.add_module(f"layer_{i + 1}", ConvNorm(nn.GroupNorm(32, width), width, width, 3, padding=1))
        in_channels = width if self.with_encoder else channels[-1]
        self.layer_4 = ConvNorm(nn.GroupNorm(32, width), in_channels, width, 3, padding=1)
        self.mask_features = nn.Conv2d(width, head["MASK_DIM"], 3, padding=1)

    def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        coarsest = features[3]
        if self.with_encoder:
            coarsest = encode(self.transformer.encoder, self.input_proj(coarsest))
        y = F.relu(self.layer_4(coarsest))
        for i in (2, 1, 0):
            lateral = getattr(self, f"adapter_{i + 1}")(features[i])
            y = lateral + F.interpolate(y, size=lateral.shape[-2:], mode="nearest")
            y = F.relu(getattr(self, f"layer_{i + 1}")(y))
        return self.mask_features(y), coarsest


def encode(encoder: TransformerStack, x: torch.Tensor) -> torch.Tensor:
    position = sine_positions(*x.shape[-2:], x.shape[1]).to(x)
    tokens = x.flatten(2).transpose(1, 2)
    for layer in encoder.layers:
        tokens = layer(tokens, position)
    return encoder.finish(tokens).transpose(1, 2).reshape(x.shape)


class Predictor(nn.Module):
    def __init__(self, cfg: dict, in_channels: int):
        super().__init__()
        head, former = cfg["SEM_SEG_HEAD"], cfg["MASK_FORMER"]
        width = former["HIDDEN_DIM"]
        self.input_proj = nn.Sequential()
        if in_channels != width or former["ENFORCE_INPUT_PROJ"]:
            self.input_proj = nn.Conv2d(in_channels, width, 1)
        self.transformer = nn.Module()
        self.transformer.encoder = TransformerStack(former, width, former["ENC_LAYERS"], cross=False)
        self.transformer.decoder = TransformerStack(former, width, former["DEC_LAYERS"], cross=True)
        self.query_embed = nn.Embedding(former["NUM_OBJECT_QUERIES"], width)
        self.class_embed = nn.Linear(width, head["NUM_CLASSES"] + 1)
        self.mask_embed = nn.Module()
        sizes = [width, width, width, head["MASK_DIM"]]
        self.mask_embed.layers = nn.ModuleList(nn.Linear(sizes[i], sizes[i + 1]) for i in range(3))

    def forward(self, x: torch.Tensor, mask_features: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Classes and masks of every decoder layer."""
        memory = encode(self.transformer.encoder, self.input_proj(x)).flatten(2).transpose(1, 2)
        position = sine_positions(*x.shape[-2:], memory.shape[-1]).to(x)
        queries = torch.zeros_like(self.query_embed.weight).expand(len(x), -1, -1)
        results = []
        for layer in self.transformer.decoder.layers:
            queries = layer(queries, self.query_embed.weight, memory, position)
            final = mask = self.transformer.decoder.finish(queries)
            for i, linear in enumerate(self.mask_embed.layers):
                mask = linear(mask) if i == 2 else F.relu(linear(mask))
            results.append((self.class_embed(final), torch.einsum("bqc,bchw->bqhw", mask, mask_features)))
        return results


class Original(nn.Module):
    def __init__(self, cfg: dict):
        super().__init__()
        self.backbone = ResNet(cfg)
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.pixel_decoder = PixelDecoder(cfg, self.backbone.channels)
        with_encoder = cfg["MASK_FORMER"]["TRANSFORMER_IN_FEATURE"] == "transformer_encoder"
        memory_channels = cfg["SEM_SEG_HEAD"]["CONVS_DIM"] if with_encoder else self.backbone.channels[-1]
        self.sem_seg_head.predictor = Predictor(cfg, memory_channels)

    def forward(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        features = self.backbone(x)
        mask_features, encoded = self.sem_seg_head.pixel_decoder(features)
        return self.sem_seg_head.predictor(encoded, mask_features)


R101C = {
    "BACKBONE": {"NAME": "build_resnet_deeplab_backbone"},
    "RESNETS": {"DEPTH": 101, "STEM_TYPE": "deeplab", "STEM_OUT_CHANNELS": 32, "RES5_MULTI_GRID": [1, 2, 4]},
}
WITH_ENCODER = {
    "SEM_SEG_HEAD": {"PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder", "TRANSFORMER_ENC_LAYERS": 2},
    "MASK_FORMER": {"TRANSFORMER_IN_FEATURE": "transformer_encoder"},
}
VARIANTS = {
    "plain": [],
    "pre-norm, no encoder layer": [{"MASK_FORMER": {"PRE_NORM": True}}],
    "pre-norm, encoder in both": [{"MASK_FORMER": {"PRE_NORM": True, "ENC_LAYERS": 2}}, WITH_ENCODER],
    "encoder in the predictor": [{"MASK_FORMER": {"ENC_LAYERS": 2}}],
    "encoder in the pixel decoder": [WITH_ENCODER],
    "forced projection of equal width": [{"MASK_FORMER": {"ENFORCE_INPUT_PROJ": True}}, WITH_ENCODER],
    "no projection of equal width": [{"MASK_FORMER": {"HIDDEN_DIM": 192}}],
    "forced projection of the backbone's width": [{"MASK_FORMER": {"HIDDEN_DIM": 192, "ENFORCE_INPUT_PROJ": True}}],
    "stride in the 1x1": [{"RESNETS": {"STRIDE_IN_1X1": True}}],
    "R101c": [R101C],
    "R101c, stride in the 1x1, pre-norm": [
        R101C,
        {"RESNETS": {"STRIDE_IN_1X1": True}, "MASK_FORMER": {"PRE_NORM": True}},
    ],
}


def changed(case: str, changes: list[dict]) -> dict:
    """The dumped `cfg.MODEL` of a stored case with some settings changed."""
    cfg = json.loads((GOLDEN / case / "config.json").read_text())["MODEL"]
    for change in changes:
        for section, settings in change.items():
            cfg[section].update(settings)
    return cfg


def shuffle(module: nn.Module):
    """No norm with weight 1, no bias 0, no statistics of an untrained BatchNorm; attention that is not flat."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if "running_var" in name:
            tensor.data.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.dim() == 1:
            tensor.data.add_(0.3 * torch.randn_like(tensor))
        elif "attn.in_proj" in name:
            tensor.data.mul_(2)


@pytest.mark.parametrize("size", [(64, 96), (70, 90)], ids=["64x96", "70x90"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant, size):
    torch.manual_seed(0)
    cfg = changed("maskformer_r50_fpn", VARIANTS[variant])
    original = Original(cfg).double().eval()
    shuffle(original)
    config = config_from_detectron2(cfg)
    model = MaskFormerHfForUniversalSegmentation(config).double().eval()
    model.load_state_dict(convert_state_dict(original.state_dict(), config))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = original(x)
        output = model(x, output_auxiliary_logits=True)
    ours = [*output.auxiliary_logits, output]
    assert len(ours) == len(expected) == 3
    for layer, (classes, masks) in zip(ours, expected, strict=True):
        # The positions are computed in single precision.
        torch.testing.assert_close(layer["class_queries_logits"], classes, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer["masks_queries_logits"], masks, rtol=0, atol=1e-5)
        assert classes.std() > 0.1, "too flat to compare anything"
        assert masks.std() > 0.1, "too flat to compare anything"


@pytest.mark.parametrize("size", [(64, 96), (70, 90), (224, 224)], ids=["64x96", "70x90", "224x224"])
def test_absolute_position_embeddings(size):
    """Resized to the grid of patches, padding to whole patches included, and added to the patches after their norm."""
    torch.manual_seed(0)
    config = config_from_detectron2(changed("maskformer_swin_tenc", [{"SWIN": {"APE": True}}]))
    with torch.device("meta"):
        own = MaskFormerHfForUniversalSegmentation(config).state_dict()
    state = {}
    for name, target in tensor_names(config).items():
        parts = [torch.randn(own[part].shape) for part in ([target] if isinstance(target, str) else target)]
        state[name] = torch.cat(parts)
    state["backbone.absolute_pos_embed"] = torch.randn(1, 16, 56, 56)  # 224 pixels in patches of 4
    model = MaskFormerHfForUniversalSegmentation(config).eval()
    model.load_state_dict(convert_state_dict(state, config))

    entering = []
    hook = lambda module, arguments: entering.append(arguments[0])  # noqa: E731
    model.model.backbone.body.swin.encoder.register_forward_pre_hook(hook)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        model(x)

    x = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
    patches = F.conv2d(x, state["backbone.patch_embed.proj.weight"], state["backbone.patch_embed.proj.bias"], stride=4)
    norm = [state[f"backbone.patch_embed.norm.{kind}"] for kind in ("weight", "bias")]
    patches = F.layer_norm(patches.permute(0, 2, 3, 1), (16,), *norm)
    grid = tuple(patches.shape[1:3])
    positions = F.interpolate(state["backbone.absolute_pos_embed"], size=grid, mode="bicubic", align_corners=False)
    torch.testing.assert_close(entering[0], (patches + positions.permute(0, 2, 3, 1)).flatten(1, 2))
