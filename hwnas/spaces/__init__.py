"""Published search spaces, one file each, and the loading of a user's own.

A new space is one file with a `build_...` function and one line in `SPACES`.
"""

from collections.abc import Callable
from functools import partial

from hwnas.ir.steps import Space
from hwnas.spaces.bit_widths import build_resnet_bits, build_resnet_bits_cpu
from hwnas.spaces.darts import build_darts, build_darts_cifar, build_darts_cpu
from hwnas.spaces.fbnet import build_fbnet, build_fbnet_cpu
from hwnas.spaces.mnasnet import build_mnasnet
from hwnas.spaces.mobile_cpu import build_mobile_cpu
from hwnas.spaces.nasnet import build_nasnet
from hwnas.spaces.ofa import build_ofa_cpu, build_ofa_mobilenet_v2, build_ofa_mobilenet_v3
from hwnas.spaces.one_shot import build_one_shot, build_one_shot_cpu
from hwnas.spaces.plain_conv import build_plain_conv, build_plain_conv_cpu
from hwnas.spaces.pnasnet import build_pnasnet
from hwnas.spaces.proxyless import build_proxyless, build_proxyless_tiny
from hwnas.spaces.spos import (
    build_spos,
    build_spos_blocks_channels,
    build_spos_blocks_channels_cpu,
    build_spos_channels,
    build_spos_cpu,
)

SPACES: dict[str, Callable[[], Space]] = {
    "mobile-cpu": build_mobile_cpu,
    "spos-cpu": build_spos_cpu,
    "spos": build_spos,
    "spos-channels": build_spos_channels,
    "spos-blocks-channels": build_spos_blocks_channels,
    "spos-blocks-channels-cpu": build_spos_blocks_channels_cpu,
    "proxyless": build_proxyless,
    "proxyless-tiny": build_proxyless_tiny,
    "fbnet": build_fbnet,
    "fbnet-1504": partial(build_fbnet, 1504),
    "fbnet-cpu": build_fbnet_cpu,
    "mnasnet": build_mnasnet,
    "ofa-mobilenet-v2": build_ofa_mobilenet_v2,
    "ofa-mobilenet-v3": build_ofa_mobilenet_v3,
    "ofa-cpu": build_ofa_cpu,
    "plain-conv": build_plain_conv,
    "plain-conv-cpu": build_plain_conv_cpu,
    "darts": build_darts,
    "darts-cifar": build_darts_cifar,
    "darts-cpu": build_darts_cpu,
    "nasnet": build_nasnet,
    "pnasnet": build_pnasnet,
    "one-shot": build_one_shot,
    "one-shot-cpu": build_one_shot_cpu,
    "resnet18-bits": partial(build_resnet_bits, 18),
    "resnet34-bits": partial(build_resnet_bits, 34),
    "resnet-bits-cpu": build_resnet_bits_cpu,
}
