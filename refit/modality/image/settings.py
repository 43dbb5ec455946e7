"""What params.yaml may say of pictures, and the networks there are for them, known without torch."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ...params import STRICT, Count, Policy, PolicyOfUnusable

SLICES = ("mode", "format")
"""Columns of the manifest by whose values a model may be judged apart."""

STATISTICS = ("brightness", "contrast", "sharpness", "width", "height")
"""Columns of the manifest by which new examples are compared with old ones."""

CHECKPOINT_FILES = ()
"""A checkpoint is one file."""

MIXES = ("mixup", "cutmix")

LEARNING_RATE = 0.0003
"""docs/training.md says what it rests on."""

ARCHITECTURES = tuple(
    """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169
    densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
    efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3
    maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf
    regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d
    resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
    squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16
    vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
    """.split()
)
"""torchvision's own names; a test compares them with `torchvision.models.list_models`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rules:
    """The rules for pictures, each with its policy."""

    not_image: Annotated[PolicyOfUnusable, Field(description="not an image")]
    damaged: Annotated[PolicyOfUnusable, Field(description="damaged image")]
    frames: Annotated[Policy, Field(description="animated, or many pages")]
    blank: Annotated[Policy, Field(description="contrast below `image.validate.min_contrast`")]
    dark: Annotated[Policy, Field(description="darker than `image.validate.min_brightness`")]
    bright: Annotated[Policy, Field(description="brighter than `image.validate.max_brightness`")]
    blurred: Annotated[Policy, Field(description="less sharp than `image.validate.min_sharpness`")]
    decoder: Annotated[Policy, Field(description="the decoder warned, or had to guess")]
    profile: Annotated[Policy, Field(description="a colour profile other than sRGB, which is not applied")]
    ending: Annotated[Policy, Field(description="the name's ending is that of another format")]
    aspect: Annotated[Policy, Field(description="longer than `image.validate.max_aspect` times its width")]
    side: Annotated[Policy, Field(description="a side outside `image.validate.min_side` to `max_side`")]
    mode: Annotated[Policy, Field(description="pixel format is not one of `image.validate.modes`")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validate:
    """Which pictures are good enough."""

    rules: Annotated[Rules, Field(description="Per rule: error (stop the run), reject, warn, off.")]

    min_side: Annotated[Count, Field(description="Smallest allowed width and height, in pixels.")]
    max_side: Annotated[Count, Field(description="Largest allowed width and height, in pixels.")]
    max_aspect: Annotated[float, Field(ge=1.0, description="Long side by short side; above 50 it is never read.")]
    min_contrast: Annotated[float, Field(ge=0.0, description="Standard deviation of gray, of 255.")]
    min_brightness: Annotated[float, Field(ge=0.0, le=255.0, description="Mean of gray.")]
    max_brightness: Annotated[float, Field(ge=0.0, le=255.0, description="Mean of gray.")]
    min_sharpness: Annotated[float, Field(ge=0.0, description="Standard deviation of the Laplacian of gray.")]
    modes: Annotated[
        tuple[Literal["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"], ...],
        Field(min_length=1, description="Allowed pixel formats, in Pillow's names."),
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Augment:
    """Random changes to training images. The change of an image depends on seed, epoch and image only."""

    policy: Annotated[
        Literal["none", "trivial_augment", "rand_augment", "auto_augment"],
        Field(description="Of torchvision; before the changes below. It costs a millisecond or two an image."),
    ]
    rotation: Annotated[float, Field(ge=0.0, le=180.0, description="Largest rotation either way, in degrees.")]
    translation: Annotated[float, Field(ge=0.0, le=1.0, description="Largest shift, as a share of the image's side.")]
    scale: Annotated[
        float, Field(ge=1.0, le=4.0, description="Largest magnification; its inverse is the smallest. 1: none.")
    ]
    horizontal_flip: Annotated[bool, Field(description="Mirror half of the images.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Finetune:
    """How pictures are shown to the network."""

    size: Annotated[
        int | None,
        Field(ge=8, le=1024, description="Side of the square that the network sees. null: as it was pretrained."),
    ]
    augment: Augment


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageSettings:
    """The section `image`."""

    validate: Validate
    finetune: Finetune


SETTINGS = ImageSettings


def contradictions(settings: ImageSettings, is_from_scratch: bool) -> list[str]:
    """Settings that exclude each other."""
    problems = []
    if settings.validate.min_side > settings.validate.max_side:
        problems.append("`image.validate.min_side` is larger than `image.validate.max_side`")
    if is_from_scratch and settings.finetune.size is None:
        problems.append("`image.finetune.size` must be a number with `checkpoint.uri: scratch`")
    return problems
