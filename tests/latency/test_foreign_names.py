"""Names are spelled as the other tools spell them: each expectation here is from their published tables or their code."""

import pytest

from hwnas.ir.block import Part
from hwnas.ir.blocks import ConvBlock, Head, MBConv, ShuffleUnit, Stem
from hwnas.ir.mobile_blocks import FBNetBlock
from hwnas.ir.shape import TensorShape
from hwnas.latency.foreign_names import hw_nas_bench_names, ofa_names, operator_name, operators


def _names(function, block, shape):
    return list(function(Part("", block, TensorShape(*shape))))


@pytest.mark.parametrize("block, shape, expected", [
    # proxylessnas/pixel_trim.yaml
    (Stem(32), (3, 224, 224), ("Conv-input:224x224x3-output:112x112x32",)),
    (MBConv(16, 3, 1), (32, 112, 112), ("expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0",)),
    (MBConv(24, 5, 3, 2), (16, 112, 112),
     ("expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:5-stride:2-idskip:0",)),
    (MBConv(80, 7, 6), (80, 14, 14), ("expanded_conv-input:14x14x80-output:14x14x80-expand:6-kernel:7-stride:1-idskip:1",)),
    (Head(1000, 1280), (320, 7, 7), ("Conv_1-input:7x7x320-output:7x7x1280", "Logits-input:7x7x1280-output:1000")),
    # ofa/note10/224_lookup_table.yaml
    (MBConv(24, 3, 1, activation="relu"), (24, 112, 112),
     ("expanded_conv-input:112x112x24-output:112x112x24-expand:24-kernel:3-stride:1-idskip:1-se:0-hs:0",)),
    (MBConv(192, 7, 3, 2, 0.25, "hardswish"), (136, 14, 14),
     ("expanded_conv-input:14x14x136-output:7x7x192-expand:408-kernel:7-stride:2-idskip:0-se:1-hs:1",)),
    (MBConv(48, 3, 6, 1, 0.25, "relu"), (48, 28, 28),
     ("expanded_conv-input:28x28x48-output:28x28x48-expand:288-kernel:3-stride:1-idskip:1-se:1-hs:0",)),
    (ConvBlock(1152, 1), (192, 7, 7), ("Conv_1-input:7x7x192-output:7x7x1152",)),
    (ConvBlock(1536, 1), (1152, 1, 1), ("Conv_2-input:1x1x1152-output:1x1x1536",)),
    (Head(1000), (1536, 1, 1), ("Logits-input:1x1x1536-output:1000",)),
    (Head(1000), (1152, 7, 7), ("AvgPool2D-input:7x7x1152-output:1x1x1152", "Logits-input:1x1x1152-output:1000")),
])
def test_once_for_all(block, shape, expected):
    assert expected in _names(ofa_names, block, shape)


@pytest.mark.parametrize("block, shape", [
    (Stem(32, 5), (3, 224, 224)), (Stem(32, pool=True), (3, 224, 224)), (ConvBlock(32, 3), (16, 8, 8)),
    (FBNetBlock(16, 3, 1), (16, 8, 8)), (FBNetBlock(16, 3, 1, groups=2), (16, 8, 8)), (ShuffleUnit(32), (32, 8, 8))])
def test_once_for_all_has_no_such_block(block, shape):
    assert _names(ofa_names, block, shape) == []


def test_a_gated_block_is_not_taken_for_a_plain_one():
    for block in (MBConv(24, 3, 6, se_ratio=0.25), MBConv(24, 3, 6, activation="hardswish")):
        assert all(name.endswith(("se:1-hs:0", "se:0-hs:1")) for (name,) in _names(ofa_names, block, (24, 8, 8)))


@pytest.mark.parametrize("block, shape, expected", [
    (Stem(16), (3, 224, 224), ("ConvNorm_H224_W224_Cin3_Cout16_kernel3_stride2_group1",)),
    (FBNetBlock(24, 5, 1, 2, 2), (16, 112, 112), ("ConvBlock_H112_W112_Cin16_Cout24_exp1_kernel5_stride2_group2",)),
    (FBNetBlock(24, 3, 6), (24, 56, 56), ("ConvBlock_H56_W56_Cin24_Cout24_exp6_kernel3_stride1_group1",)),
    (MBConv(24, 3, 6), (24, 56, 56), ("ConvBlock_H56_W56_Cin24_Cout24_exp6_kernel3_stride1_group1",)),
    (ConvBlock(24, 1, 2), (16, 112, 112), ("Skip_H112_W112_Cin16_Cout24_stride2",)),
    (Head(1000, 1984), (352, 7, 7), ("ConvNorm_H7_W7_Cin352_Cout1984_kernel1_stride1_group1",
                                     "AvgP_H7_W7_Cin1984_Cout1984_kernel7_stride1", "FC_Cin1984_Cout1000")),
])
def test_hw_nas_bench(block, shape, expected):
    assert expected in _names(hw_nas_bench_names, block, shape)


@pytest.mark.parametrize("block", [MBConv(16, 3, 1), FBNetBlock(16, 3, 1, expand_always=False), MBConv(16, 3, 6, se_ratio=0.25),
                                   MBConv(16, 3, 6, residual=False), ShuffleUnit(16)])
def test_hw_nas_bench_has_no_such_block(block):
    """Theirs always begin with a pointwise convolution, add the input where shapes allow, and have no gate."""
    assert _names(hw_nas_bench_names, block, (16, 8, 8)) == []


def _record(kind, shapes, **arguments):
    texts = [f'name: "{key}"\ni: {value}\n' if isinstance(value, int) else f'name: "{key}"\ns: "{value}"\n'
             for key, value in arguments.items()]
    return {"op_type": kind, "op_args": texts, "input_shapes": shapes}


def test_an_operator_and_a_layer_meet():
    """The operators of FBNet-A's released int8 network (FBNet/models/FBNet-A/int8/model.pbtxt): their kinds and arguments."""
    nhwc, kernel1 = {"order": "NHWC"}, {"kernel": 1, "stride": 1, "pad": 0}
    records = [
        _record("Int8ConvRelu", [[1, 28, 28, 32], [32, 1, 1, 16], [32]], **kernel1, group=2, **nhwc),
        _record("Int8ChannelShuffle", [[1, 28, 28, 32]], kernel=1, group=2, **nhwc),
        _record("Int8ConvRelu", [[1, 28, 28, 32], [32, 3, 3, 1], [32]], kernel=3, stride=1, pad=1, group=32, **nhwc),
        _record("Int8Conv", [[1, 28, 28, 32], [32, 1, 1, 16], [32]], **kernel1, group=2, **nhwc),
        _record("Int8Sum", [[1, 28, 28, 32], [1, 28, 28, 32]], **nhwc)]
    assert _names(operators, FBNetBlock(32, 3, 1, groups=2), (32, 28, 28)) == [tuple(map(operator_name, records))]
    head = [
        _record("Int8ConvRelu", [[1, 7, 7, 352], [1504, 1, 1, 352], [1504]], **kernel1, **nhwc),
        _record("Int8AveragePool", [[1, 7, 7, 1504]], kernel=7, stride=1, **nhwc),
        _record("Int8FC", [[1, 1, 1, 1504], [1000, 1504], [1000]], **nhwc)]
    assert _names(operators, Head(1000, 1504), (352, 7, 7)) == [tuple(map(operator_name, head))]
    stem = _record("Int8ConvRelu", [[1, 224, 224, 3], [16, 3, 3, 3], [16]], kernel=3, stride=2, pad=1, **nhwc)
    assert _names(operators, Stem(16), (3, 224, 224)) == [(operator_name(stem),)]


def test_what_an_operator_says_counts():
    plain = _record("Int8Conv", [[1, 28, 28, 32], [32, 3, 3, 32], [32]], kernel=3, stride=1, pad=1)
    others = [_record("Int8Conv", [[1, 28, 28, 32], [32, 3, 3, 32], [32]], kernel=3, stride=1, pad=0),
              _record("Int8Conv", [[1, 28, 28, 32], [32, 3, 3, 32], [32]], kernel=3, stride=2, pad=1),
              _record("Int8Conv", [[1, 14, 14, 32], [32, 3, 3, 32], [32]], kernel=3, stride=1, pad=1),
              _record("Int8Conv", [[2, 28, 28, 32], [32, 3, 3, 32], [32]], kernel=3, stride=1, pad=1),
              _record("Int8Softmax", [[1, 1000]]), plain | {"op_args": None}, plain | {"op_args": [3]},
              plain | {"input_shapes": "none"}, plain | {"input_shapes": [[1, "28", 28, 32], [32, 3, 3, 32]]}]
    assert operator_name(plain) is not None and operator_name(plain) not in map(operator_name, others)


@pytest.mark.parametrize("block", [MBConv(32, 3, 6, se_ratio=0.25), MBConv(32, 3, 6, activation="hardswish"), ShuffleUnit(32)])
def test_a_block_of_other_operators_has_none(block):
    assert _names(operators, block, (32, 8, 8)) == []
