"""torch's recorded outcomes (``data/torch_behaviours.json``): what numbaconv makes of each, and how to run its code without torch.

``TABLE`` gives every id exactly one class:

reproduced       the same shape, dtype and values (or text, or JSON value)
refused          torch refuses, numbaconv too: with ``ValueError`` or ``TypeError``, naming the argument
extension        torch refuses it or loses the result; numbaconv computes what ``EXPECTED`` says
stricter         numbaconv refuses where torch computes something or fails only later
about torch only flags, bits and kinds of tensor that numbaconv does not have
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .checks import assert_same, wide
from .torch_names import NAMES

RECORDED: dict[str, dict[str, Any]] = {
    case["id"]: case for case in json.loads((Path(__file__).parent / "data" / "torch_behaviours.json").read_text("utf-8"))["cases"]
}


class Row(NamedTuple):
    """Ids of one class.  ``reason`` is for the README; ``error`` is "<class> <word that the message contains>" for refusals."""

    outcome: str
    ids: str
    reason: str = ""
    error: str = ""


TABLE = [
    # ---- the same answer ---------------------------------------------------------------------------------------------
    Row("reproduced", """
        args.conv1d_default args.conv1d_bias args.conv1d_stride_int args.conv1d_stride_tuple_len1 args.conv1d_stride_list
        args.conv1d_padding_int args.conv1d_padding_tuple args.conv1d_dilation args.conv1d_groups2 args.conv1d_depthwise_mult
        args.conv1d_all args.conv1d_unbatched args.conv2d_default args.conv2d_bias args.conv2d_stride_int
        args.conv2d_stride_tuple_len1 args.conv2d_stride_list args.conv2d_padding_int args.conv2d_padding_tuple args.conv2d_dilation
        args.conv2d_groups2 args.conv2d_depthwise_mult args.conv2d_all args.conv2d_unbatched args.conv3d_default args.conv3d_bias
        args.conv3d_stride_int args.conv3d_stride_tuple_len1 args.conv3d_stride_list args.conv3d_padding_int
        args.conv3d_padding_tuple args.conv3d_dilation args.conv3d_groups2 args.conv3d_depthwise_mult args.conv3d_all
        args.conv3d_unbatched args.conv2d_stride_tuple_mixed args.conv2d_kwargs_names args.conv2d_stride_np_int64
        args.conv2d_stride_tensor0d args.conv2d_padding_gt_kernel args.conv2d_kernel_1x1 args.conv2d_kernel_eq_input
        shape.conv2d_bias_len1_out1
        same.conv1d_k1_ones_arange same.conv1d_k2_ones_arange same.conv1d_k3_ones_arange same.conv1d_k4_ones_arange
        same.conv1d_k5_ones_arange same.conv1d_k2_dil2 same.conv1d_k2_dil3 same.conv1d_k4_dil3 same.conv1d_k3_dil2 same.conv2d_k2x3
        same.conv2d_k4x2_bias_groups same.conv3d_k2x3x4 same.conv3d_k2_unbatched same.conv2d_kernel_gt_input
        same.conv2d_valid_stride2
        """),
    Row("reproduced", """
        ctor.Conv1d_repr_min ctor.Conv1d_state_dict ctor.Conv2d_repr_min ctor.Conv2d_state_dict ctor.Conv3d_repr_min
        ctor.Conv3d_state_dict ctor.ConvTranspose1d_repr_min ctor.ConvTranspose1d_state_dict ctor.ConvTranspose2d_repr_min
        ctor.ConvTranspose2d_state_dict ctor.ConvTranspose3d_repr_min ctor.ConvTranspose3d_state_dict ctor.repr_all ctor.repr_same
        ctor.repr_valid ctor.repr_transpose_all ctor.repr_int_expand ctor.repr_list_kernel ctor.attrs ctor.attrs_even_same
        ctor.bias_none_attr ctor.channels_zero_in ctor.dtype_complex ctor.dtype_f64 ctor.positional_order
        lazy.LazyConv1d_repr lazy.LazyConv2d_repr lazy.LazyConv3d_repr lazy.LazyConvTranspose1d_repr lazy.LazyConvTranspose2d_repr
        lazy.LazyConvTranspose3d_repr lazy.repr_after lazy.unbatched lazy.groups
        init.nn.Conv2d(4,64,3) init.nn.Conv3d(4,64,3,groups=2) init.nn.ConvTranspose2d(4,64,3) init.nn.ConvTranspose3d(4,64,3,groups=4)
        init.nn.Conv1d(16,128,5) init.reset_parameters_order init.zero_elements_warning
        """),
    Row("reproduced", """
        padmode.conv1d_zeros_int padmode.conv2d_zeros_tuple padmode.conv3d_zeros_tuple padmode.conv2d_zeros_same_even
        padmode.conv2d_zeros_valid padmode.conv2d_zeros_stride_dil padmode.conv2d_zeros_unbatched padmode.conv3d_zeros_unbatched
        padmode.conv1d_zeros_unbatched padmode.conv1d_zeros_pad_eq_size padmode.conv1d_zeros_pad_gt_size
        padmode.conv1d_zeros_pad_size_minus1 padmode.conv2d_zeros_empty_batch padmode.conv2d_zeros_size1
        padmode.conv1d_reflect_int padmode.conv2d_reflect_tuple padmode.conv3d_reflect_tuple padmode.conv2d_reflect_same_even
        padmode.conv2d_reflect_valid padmode.conv2d_reflect_stride_dil padmode.conv2d_reflect_unbatched
        padmode.conv3d_reflect_unbatched padmode.conv1d_reflect_unbatched padmode.conv1d_reflect_pad_size_minus1
        padmode.conv2d_reflect_empty_batch
        padmode.conv1d_replicate_int padmode.conv2d_replicate_tuple padmode.conv3d_replicate_tuple padmode.conv2d_replicate_same_even
        padmode.conv2d_replicate_valid padmode.conv2d_replicate_stride_dil padmode.conv2d_replicate_unbatched
        padmode.conv3d_replicate_unbatched padmode.conv1d_replicate_unbatched padmode.conv1d_replicate_pad_eq_size
        padmode.conv1d_replicate_pad_gt_size padmode.conv1d_replicate_pad_size_minus1 padmode.conv2d_replicate_empty_batch
        padmode.conv2d_replicate_size1
        padmode.conv1d_circular_int padmode.conv2d_circular_tuple padmode.conv3d_circular_tuple padmode.conv2d_circular_same_even
        padmode.conv2d_circular_valid padmode.conv2d_circular_stride_dil padmode.conv2d_circular_unbatched
        padmode.conv3d_circular_unbatched padmode.conv1d_circular_unbatched padmode.conv1d_circular_pad_eq_size
        padmode.conv1d_circular_pad_size_minus1 padmode.conv2d_circular_empty_batch padmode.conv2d_circular_size1
        padmode.circular_asym_same_k2 padmode.transpose_zeros_ok
        """),
    Row("reproduced", """
        empty.batch0_2d empty.batch0_3d empty.batch0_1d empty.batch0_transpose2d empty.batch0_transpose3d empty.batch0_unfold
        empty.batch0_fold
        layout.transposed_view layout.expanded_stride0 layout.sliced_step2 layout.channels_last_in layout.channels_last_f32
        layout.channels_last_weight_only_f32 layout.channels_last3d_f32 layout.weight_noncontig layout.numpy_readonly_warns
        layout.numpy_fortran layout.input_unchanged layout.output_alias_1x1_identity
        dtype.conv1d_float64 dtype.conv2d_float64 dtype.conv_transpose2d_float64 dtype.conv3d_float64 dtype.conv_transpose3d_float64
        dtype.conv1d_float32 dtype.conv2d_float32 dtype.conv_transpose2d_float32 dtype.conv3d_float32 dtype.conv_transpose3d_float32
        dtype.conv1d_float16 dtype.conv2d_float16 dtype.conv_transpose2d_float16 dtype.conv3d_float16 dtype.conv_transpose3d_float16
        dtype.conv1d_bfloat16 dtype.conv2d_bfloat16 dtype.conv_transpose2d_bfloat16 dtype.conv3d_bfloat16
        dtype.conv_transpose3d_bfloat16 dtype.conv1d_int8 dtype.conv2d_int8 dtype.conv3d_int8 dtype.conv1d_uint8 dtype.conv2d_uint8
        dtype.conv3d_uint8 dtype.conv1d_int16 dtype.conv2d_int16 dtype.conv3d_int16 dtype.conv1d_int32 dtype.conv2d_int32
        dtype.conv3d_int32 dtype.conv1d_int64 dtype.conv2d_int64 dtype.conv_transpose2d_int64 dtype.conv3d_int64
        dtype.conv_transpose3d_int64 dtype.conv1d_complex64 dtype.conv2d_complex64 dtype.conv_transpose2d_complex64
        dtype.conv3d_complex64 dtype.conv_transpose3d_complex64 dtype.conv1d_complex128 dtype.conv2d_complex128
        dtype.conv_transpose2d_complex128 dtype.conv3d_complex128 dtype.conv_transpose3d_complex128
        dtype.conv2d_int64_bias dtype.conv2d_int64_pad_groups_dil dtype.conv3d_int64_bias dtype.conv2d_int8_wrap
        dtype.conv2d_uint8_wrap dtype.conv2d_int64_big_exact dtype.conv2d_f16_accum dtype.conv2d_bf16_accum dtype.conv2d_f16_overflow
        dtype.conv2d_f16_bias_rounding dtype.complex_values dtype.complex_bias dtype.complex_int_pad_same
        special.nan_in_input special.inf_times_zero_weight special.inf_weight_zero_padding_2d special.inf_weight_zero_padding_2d_f32
        special.inf_weight_zero_padding_3d_f32 special.inf_weight_zero_padding_1d_f32 special.inf_weight_transpose_f32
        special.neg_zero special.denormal
        """),
    Row("reproduced", """
        transpose.t1d_default transpose.t1d_stride2 transpose.t1d_pad_outpad transpose.t1d_dilation transpose.t1d_groups
        transpose.t1d_unbatched transpose.t2d_default transpose.t2d_stride2 transpose.t2d_pad_outpad transpose.t2d_dilation
        transpose.t2d_groups transpose.t2d_unbatched transpose.t3d_default transpose.t3d_stride2 transpose.t3d_pad_outpad
        transpose.t3d_dilation transpose.t3d_groups transpose.t3d_unbatched transpose.arg_order transpose.outpad_eq_stride_lt_dilation
        transpose.outpad_eq_stride_lt_dilation_3d transpose.outpad_len1 transpose.output_size_[7,9] transpose.output_size_(1,3,8,10)
        transpose.output_size_torch.Size([1,3,7,9]) transpose.output_size_pad1_min transpose.output_size_unbatched
        transpose.output_size_overrides_outpad
        fold.unfold fold.unfold_all fold.unfold_unbatched fold.fold fold.fold_all fold.fold_unbatched fold.unfold_module_repr
        fold.pixel_check
        grad.conv2d_input grad.conv2d_input_stride grad.conv2d_input_pad_dil_groups grad.conv2d_weight grad.conv2d_weight_stride_groups
        grad.conv3d_weight grad.conv3d_input grad.conv1d_input grad.conv1d_weight
        misc.batch_invariance_f64_3d misc.thread_invariance_f32_2d misc.thread_invariance_f64_3d misc.layout_invariance_f32
        misc.conv_is_crosscorr
        """),
    # ---- both refuse -------------------------------------------------------------------------------------------------
    Row("refused", """
        args.conv2d_stride_len3 args.conv3d_stride_len2 args.conv2d_stride_empty args.conv2d_stride_zero args.conv2d_stride_negative
        ctor.stride_zero_forward fold.unfold_stride0
        """, error="ValueError stride"),
    Row("refused", """
        args.conv2d_stride_float args.conv2d_stride_bool args.conv2d_stride_none args.conv2d_stride_ndarray
        """, error="TypeError stride"),
    Row("refused", """
        args.conv2d_dilation_len3 args.conv2d_dilation_zero args.conv2d_dilation_negative fold.unfold_dil0
        """, error="ValueError dilation"),
    Row("refused", """
        args.conv2d_padding_len3 args.conv2d_padding_negative same.conv2d_stride2 same.conv2d_stride_1_2 same.conv2d_upper_SAME
        same.conv2d_full ctor.padding_bad_str ctor.padding_SAME_upper ctor.same_stride2 padmode.conv2d_zeros_negative_pad
        padmode.conv1d_reflect_pad_eq_size padmode.conv1d_reflect_pad_gt_size padmode.conv2d_reflect_size1
        padmode.conv1d_circular_pad_gt_size padmode.reflect_2d_limit_msg padmode.reflect_3d_limit_msg padmode.circular_2d_limit_msg
        padmode.padding_bad_len_zeros padmode.padding_bad_len_reflect transpose.padding_too_big transpose.padding_too_big_3d
        transpose.padding_negative fold.unfold_padneg misc.huge_padding misc.overflow_output_shape
        """, error="ValueError padding"),
    Row("refused", "same.conv_transpose_same", error="TypeError padding"),
    Row("refused", """
        ctor.padding_mode_bad ctor.padding_mode_symmetric ctor.transpose_padding_mode
        """, error="ValueError padding_mode"),
    Row("refused", "transpose.outpad_ge_stride transpose.outpad_negative", error="ValueError output_padding"),
    Row("refused", """
        transpose.output_size_[6,8] transpose.output_size_[3,8,10] transpose.output_size_[9,9] transpose.output_size_[5,8]
        transpose.output_size_[8]
        """, error="ValueError output_size"),
    Row("refused", "transpose.output_size_7", error="TypeError output_size"),
    Row("refused", """
        shape.conv2d_groups_zero shape.conv2d_groups_negative shape.conv2d_groups_out_indivisible shape.conv2d_groups_in_mismatch
        shape.conv2d_groups_gt_out ctor.in_indivisible ctor.out_indivisible ctor.groups_zero transpose.groups_in_indivisible
        lazy.groups_indivisible
        """, error="ValueError groups"),
    Row("refused", "shape.conv2d_groups_float", error="TypeError groups"),
    Row("refused", """
        shape.conv2d_input_2d shape.conv2d_input_5d shape.conv3d_input_3d shape.conv1d_input_1d shape.conv2d_channel_mismatch
        shape.conv2d_unbatched_channel_mismatch shape.conv3d_channel_mismatch ctor.forward_dim_bad empty.batch0_channel_mismatch
        empty.spatial0_nopad empty.spatial0_pad empty.spatial0_pad_3d transpose.channel_mismatch transpose.input_2d lazy.bad_dims
        lazy.second_call_other_channels fold.unfold_2d fold.unfold_5d fold.fold_bad_L fold.fold_bad_channels
        """, error="ValueError input"),
    Row("refused", """
        shape.conv2d_kernel_gt_input shape.conv2d_kernel_gt_input_pad shape.conv2d_dilated_kernel_gt_input shape.conv3d_kernel_gt_input
        shape.conv1d_kernel_gt_input fold.unfold_kernel_gt
        """, error="ValueError kernel"),
    Row("refused", "ctor.kernel_negative ctor.kernel_len3_forward", error="ValueError kernel_size"),
    Row("refused", "ctor.kernel_float", error="TypeError kernel_size"),
    Row("refused", """
        shape.conv2d_weight_3d shape.conv2d_weight_5d same.conv2d_weight_dim_wrong same.conv2d_same_kernel0 ctor.load_state_shape
        empty.out_channels0 empty.kernel0 empty.kernel0_3d
        """, error="ValueError weight"),
    Row("refused", """
        shape.conv2d_bias_len shape.conv2d_bias_2d shape.conv2d_bias_0d ctor.load_state_missing ctor.load_state_unexpected
        transpose.bias_len
        """, error="ValueError bias"),
    Row("refused", "ctor.channels_negative lazy.weight_shape_uninit", error="ValueError in_channels"),
    Row("refused", """
        dtype.mix_f32_f64 dtype.mix_f64_f32 dtype.mix_int_f32 dtype.mix_f32_f16 dtype.mix_f32_c64 dtype.mix_same_f32_f64
        dtype.mix_3d_f32_f64 dtype.mix_transpose ctor.forward_dtype_bad ctor.forward_int_input
        """, error="TypeError weight"),
    Row("refused", "dtype.mix_bias_f32", error="TypeError bias"),
    Row("refused", """
        dtype.conv1d_uint16 dtype.conv2d_uint16 dtype.conv_transpose2d_uint16 dtype.conv3d_uint16 dtype.conv_transpose3d_uint16
        dtype.conv1d_uint32 dtype.conv2d_uint32 dtype.conv_transpose2d_uint32 dtype.conv3d_uint32 dtype.conv_transpose3d_uint32
        dtype.conv1d_uint64 dtype.conv2d_uint64 dtype.conv_transpose2d_uint64 dtype.conv3d_uint64 dtype.conv_transpose3d_uint64
        dtype.conv1d_bool dtype.conv2d_bool dtype.conv_transpose2d_bool dtype.conv3d_bool dtype.conv_transpose3d_bool
        dtype.conv1d_float8_e4m3fn dtype.conv2d_float8_e4m3fn dtype.conv_transpose2d_float8_e4m3fn dtype.conv3d_float8_e4m3fn
        dtype.conv_transpose3d_float8_e4m3fn layout.numpy_longdouble
        """, error="TypeError input"),
    Row("refused", "grad.conv2d_input_bad_size grad.conv2d_weight_bad", error="ValueError grad_output"),
    Row("refused", "grad.conv2d_input_none_size", error="TypeError input_size"),
    Row("refused", "ctor.dtype_int", error="TypeError dtype"),
    Row("refused", "ctor.device_bad", error="ValueError device"),
    Row("refused", "ctor.forward_extra_arg", error="TypeError arguments"),
    # ---- numbaconv computes, torch does not ----------------------------------------------------------------------------
    Row("extension", "args.conv2d_ndarray_input ctor.forward_ndarray", "NumPy arrays are what numbaconv takes"),
    Row("extension", "args.conv2d_padding_pairs", "a padding of its own at each end of an axis: pairs (low, high)"),
    Row("extension", "args.conv2d_padding_mode_kw", "padding_mode as an argument of the functions"),
    Row("extension", "args.conv2d_out_kw", "out="),
    Row("extension", "layout.numpy_neg_stride_from_numpy layout.numpy_byteswapped", "negative strides and foreign byte order"),
    Row("extension", """
        dtype.conv_transpose2d_int8 dtype.conv_transpose3d_int8 dtype.conv_transpose2d_uint8 dtype.conv_transpose3d_uint8
        dtype.conv_transpose2d_int16 dtype.conv_transpose3d_int16 dtype.conv_transpose2d_int32 dtype.conv_transpose3d_int32
        """, "transposed convolutions of int8, uint8, int16 and int32"),
    Row("extension", "fold.unfold_int64 fold.fold_int64", "unfold and fold of integers"),
    Row("extension", "grad.conv2d_input_same grad.conv2d_input_unbatched", "gradients of unbatched inputs and of padding=\"same\""),
    Row("extension", """
        empty.in_channels0 empty.in_channels0_3d empty.in_channels0_nobias empty.unbatched_c0
        """, "no input channels: the full output shape, each element its bias (torch returns an empty result)"),
    Row("extension", "special.inf_weight_zero_padding_2d_depthwise_f32",
        "an infinite weight on a padded zero is NaN in depthwise convolutions too (torch skips the padding in these alone)"),
    Row("extension", "ctor.repr_kernel_len1", "kernel_size=(3,) of a 2-D layer means (3, 3) (torch makes a layer that cannot be called)"),
    # ---- numbaconv refuses, torch does not -----------------------------------------------------------------------------
    Row("stricter", """
        padmode.conv2d_reflect_negative_pad padmode.conv2d_replicate_negative_pad padmode.conv2d_circular_negative_pad
        """, "negative padding: torch refuses it with zeros and silently crops with the other modes", "ValueError padding"),
    Row("stricter", "ctor.transpose_padding_str",
        "padding=\"same\" of a transposed layer: torch takes it for four letters and fails when called", "TypeError padding"),
    Row("stricter", "ctor.stride_zero_ctor", "stride 0: torch refuses only when the layer is called", "ValueError stride"),
    Row("stricter", "ctor.kernel_len3", "a kernel_size of another length than the rank: torch makes a layer that cannot be called",
        "ValueError kernel_size"),
    Row("stricter", "ctor.kernel_zero init.kernel_zero_bias", "an empty kernel: torch makes a layer that cannot be called",
        "ValueError kernel_size"),
    Row("stricter", "ctor.channels_zero_out", "no output channels: torch makes a layer that cannot be called", "ValueError out_channels"),
    Row("stricter", """
        padmode.conv2d_zeros_int_dtype padmode.conv2d_reflect_int_dtype padmode.conv2d_replicate_int_dtype
        padmode.conv2d_circular_int_dtype
        """, "a layer's weight keeps the layer's dtype (the functions take integers)", "TypeError weight"),
    Row("stricter", "lazy.state_dict_uninit", "the state of a lazy layer before its first call: torch has placeholders",
        "ValueError in_channels"),
    Row("stricter", "fold.unfold_bool", "bool arrays: say which number is meant, .astype(numpy.uint8)", "TypeError input"),
    # ---- nothing to compare --------------------------------------------------------------------------------------------
    Row("about torch only", "ctor.device_meta misc.meta_conv3d_2g", "meta tensors (explain() answers for shapes)"),
    Row("about torch only", "layout.sparse_input", "sparse tensors"),
    Row("about torch only", """
        dtype.conv1d_complex32 dtype.conv2d_complex32 dtype.conv_transpose2d_complex32 dtype.conv3d_complex32
        dtype.conv_transpose3d_complex32
        """, "complex32, which NumPy does not have"),
    Row("about torch only", "misc.requires_grad_out misc.numpy_of_grad_output grad.int_backward", "requires_grad"),
    Row("about torch only", """
        misc.conv_tbc_exists misc.torch_conv_aliases misc.determinism_flags misc.fp32_precision_api
        """, "the names and flags that torch has"),
    Row("about torch only", """
        misc.batch_invariance_f32_2d misc.batch_invariance_f32_3d misc.crop_invariance_f32_2d
        """, "torch's float32 bits change with the batch and the crop (numbaconv's do not change with the batch)"),
]  # fmt: skip

OUTCOMES = ("reproduced", "refused", "extension", "stricter", "about torch only")
ROWS = {case_id: row for row in TABLE for case_id in row.ids.split()}


def ids(*outcomes: str) -> list[str]:
    """The ids of these classes that are recorded, in the table's order."""
    return [case_id for case_id, row in ROWS.items() if row.outcome in outcomes and case_id in RECORDED]


# ---- torch's code without torch --------------------------------------------------------------------------------------
# Where these few replacements and the stand-ins below do not turn recorded code into numbaconv's, SNIPPETS says it in full.
REPLACEMENTS = (
    (r"\.detach\(\)|\.numpy\(\)", ""),
    (r"\.to\((torch\.\w+)\)", r".astype(\1)"),
    (r"\.clone\(\)", ".copy()"),
    (r"\.transpose\(", ".swapaxes("),
)

SNIPPETS = {
    "args.conv2d_out_kw": "o=np.empty((1,3,3,3)); r=F.conv2d(A(1,2,5,5),K(3,2,3,3),out=o); assert r is o",
    "ctor.forward_ndarray": "m=nn.Conv2d(1,1,3); m.bias[:]=2; r=m(np.zeros((1,1,5,5),np.float32))",
    "ctor.attrs": "m=nn.Conv2d(4,8,3,padding='same',groups=2); r={k:str(getattr(m,k)) for k in ('in_channels','out_channels',"
    "'kernel_size','stride','padding','dilation','transposed','output_padding','groups','padding_mode')}; "
    "r['_reversed_padding_repeated_twice']=str(reversed_padding(m))",
    "ctor.attrs_even_same": "r=reversed_padding(nn.Conv2d(4,8,(2,4),padding='same',dilation=(1,3)))",
    "ctor.dtype_complex": "m=nn.Conv2d(1,1,3,dtype=np.complex64); r='torch.'+str(m.weight.dtype)",
    "ctor.dtype_f64": "m=nn.Conv2d(1,1,3,dtype=np.float64); r='torch.'+str(m.weight.dtype)",
    "ctor.positional_order": "r=[str(inspect.signature(x.__init__)) for x in "
    "(nn.Conv2d,nn.ConvTranspose2d,nn.LazyConv2d,nn.LazyConvTranspose2d)]",
    "layout.expanded_stride0": "r=F.conv2d(np.broadcast_to(A(1,1,5,5),(2,2,5,5)),K(3,2,3,3))",
    "layout.channels_last_in": "r=F.conv2d(channels_last(A(2,3,5,5)),K(4,3,3,3))",
    "layout.channels_last_f32": "r=F.conv2d(channels_last(A(2,3,5,5,dt=np.float32)),K(4,3,3,3,dt=np.float32))",
    "layout.channels_last_weight_only_f32": "r=F.conv2d(A(2,3,5,5,dt=np.float32),channels_last(K(4,3,3,3,dt=np.float32)))",
    "layout.channels_last3d_f32": "r=F.conv3d(channels_last(A(2,3,4,5,5,dt=np.float32)),K(4,3,3,3,3,dt=np.float32))",
    "layout.numpy_byteswapped": "r=F.conv2d(A(1,2,5,5).astype('>f8'),K(3,2,3,3))",
    "layout.numpy_longdouble": "F.conv2d(np.zeros((1,1,5,5),np.longdouble),np.zeros((1,1,3,3),np.longdouble))",
    "layout.output_alias_1x1_identity": "x=A(1,1,3,3); r=np.shares_memory(x,F.conv2d(x,np.ones((1,1,1,1))))",
    "special.neg_zero": "r='tensor([[[[%g.]]]])' % F.conv2d(torch.full((1,1,1,1),-0.0),torch.ones(1,1,1,1)).item()",
    "init.reset_parameters_order": "m=nn.Conv2d(1,1,1,rng=0); g=np.random.default_rng(0); a,b=g.uniform(-1,1,2).astype(np.float32); "
    "r=[bool(m.weight.item()==a),bool(m.bias.item()==b)]",
    "misc.overflow_output_shape": "F.conv2d(torch.empty(1,1,5,5),torch.empty(1,1,3,3),padding=2**62)",
    "misc.thread_invariance_f32_2d": "x=torch.randn(2,16,32,32); w=torch.randn(16,16,3,3); r=same_for_threads(F.conv2d,x,w)",
    "misc.thread_invariance_f64_3d": "x=torch.randn(1,8,12,12,12).astype(np.float64); w=torch.randn(8,8,3,3,3).astype(np.float64); "
    "r=same_for_threads(F.conv3d,x,w)",
    "misc.batch_invariance_f64_3d": "x=torch.randn(4,8,10,10,10).astype(np.float64); w=torch.randn(8,8,3,3,3).astype(np.float64); "
    "a=F.conv3d(x,w,padding=1); r=[bool((F.conv3d(x[i:i+1],w,padding=1)==a[i:i+1]).all()) for i in range(3)]",
    "misc.layout_invariance_f32": "x=torch.randn(2,16,20,20); w=torch.randn(16,16,3,3); "
    "r=bool((F.conv2d(x,w)==F.conv2d(channels_last(x),w)).all())",
    **{
        case_id: f"m={case_id.removeprefix('init.')[:-1]},rng=0); r=initial_bounds(m)"
        for case_id in RECORDED
        if case_id.startswith("init.nn.")
    },
}

EXPECTED = {
    "args.conv2d_ndarray_input": "r=F.conv2d(A(1,2,5,5),K(3,2,3,3))",
    "ctor.forward_ndarray": "r=np.full((1,1,3,3),2,np.float32)",
    "args.conv2d_padding_pairs": "r=F.conv2d(np.pad(A(1,2,5,5),((0,0),(0,0),(0,1),(0,1))),K(3,2,3,3))",
    "args.conv2d_padding_mode_kw": "r=F.conv2d(np.pad(A(1,2,5,5),((0,0),(0,0),(1,1),(1,1)),'reflect'),K(3,2,3,3))",
    "args.conv2d_out_kw": "r=F.conv2d(A(1,2,5,5),K(3,2,3,3))",
    "layout.numpy_neg_stride_from_numpy": "r=F.conv2d(A(1,2,5,5)[:,:,::-1].copy(),K(3,2,3,3))",
    "layout.numpy_byteswapped": "r=F.conv2d(A(1,2,5,5),K(3,2,3,3))",
    **{
        f"dtype.conv_transpose{d}d_{dt}": f"r=F.conv_transpose{d}d({a},{k}).astype(np.int64).astype(np.{dt})"
        for d in (2, 3)
        for dt in ("int8", "uint8", "int16", "int32")
        for s in [(1, 2) + (4,) * d]
        for a, k in [(f"A{s}", f"K{(2, 2) + (2,) * d}") if dt != "uint8" else (f"A{s}%3", f"K{(2, 2) + (2,) * d}%3")]
    },
    "fold.unfold_int64": "r=F.unfold(A(1,1,4,4),2).astype(np.int64)",
    "fold.fold_int64": "r=F.fold(A(1,8,9),(4,4),2).astype(np.int64)",
    "grad.conv2d_input_same": "r=F.conv_transpose2d(A(1,3,5,5),K(3,2,3,3),padding=1)",
    "grad.conv2d_input_unbatched": "r=F.conv_transpose2d(A(1,3,3,3),K(3,2,3,3))[0]",
    "empty.in_channels0": "r=np.ones((1,3,3,3))*B(3)[:,None,None]",
    "empty.in_channels0_3d": "r=np.ones((1,3,3,3,3))*B(3)[:,None,None,None]",
    "empty.in_channels0_nobias": "r=np.zeros((1,3,3,3))",
    "empty.unbatched_c0": "r=np.zeros((3,3,3))",
    "special.inf_weight_zero_padding_2d_depthwise_f32": "r=np.full((1,2,3,3),np.nan,np.float32); r[:,:,1,1]=np.inf",
    "ctor.repr_kernel_len1": "r='Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))'",
}


def _names_and_defaults(signatures: list[str]) -> list[dict[str, Any]]:
    """Parameters in order with their defaults, but for ``rng``, which torch does not have; annotations are not compared."""
    found = []
    for text in signatures:
        scope: dict[str, Any] = {}
        exec(f"from __future__ import annotations\ndef f{text}: ...", scope)
        found.append([(p.name, p.default, p.kind) for p in inspect.signature(scope["f"]).parameters.values() if p.name != "rng"])
    return found


def _near_the_bound(value: dict[str, Any]) -> dict[str, Any]:
    """The largest drawn values depend on the generator: within the bound, and above 0.9 of it."""
    return value | {name: 0.9 < value[name] <= 1 for name in ("weight_max_ratio", "bias_max_ratio")}


# What is compared of a JSON value where not all of it is meant.
VIEWS: dict[str, Callable[[Any], Any]] = {
    "ctor.positional_order": _names_and_defaults,
    **dict.fromkeys((case_id for case_id in RECORDED if case_id.startswith("init.nn.")), _near_the_bound),
}


def run(case_id: str, functions: Mapping[str, Any] | None = None) -> Any:
    """What the recorded code of ``case_id`` leaves in ``r``; ``functions`` stand in for some of ``torch.nn.functional``."""
    code = SNIPPETS.get(case_id)
    if code is None:
        code = RECORDED[case_id]["code"]
        for pattern, replacement in REPLACEMENTS:
            code = re.sub(pattern, replacement, code)
    return execute(code, functions)


def expected(case_id: str) -> Any:
    """What an extension must give."""
    return execute(EXPECTED[case_id])


def calls_only_functions(case_id: str) -> bool:
    """Whether the case computes a tensor with conv* functions alone."""
    outcome, code = RECORDED[case_id]["outcome"], SNIPPETS.get(case_id, RECORDED[case_id]["code"])
    return outcome.get("kind") == "tensor" and set(re.findall(r"\b(F|nn)\.(conv)?", code)) == {("F", "conv")}


def execute(code: str, functions: Mapping[str, Any] | None = None) -> Any:
    names = dict(NAMES)
    if functions is not None:
        names["F"] = SimpleNamespace(**functions)
    exec(code, names)
    return names.get("r")


def check_outcome(case_id: str, got: Any) -> None:
    """``got`` is what torch's recorded outcome says: shape, dtype and values, or text, or JSON value."""
    outcome = RECORDED[case_id]["outcome"]
    assert outcome["ok"] is True
    if outcome["kind"] != "tensor":
        view = VIEWS.get(case_id, lambda value: value)
        assert view(json.loads(json.dumps(got))) == view(outcome["value"])
        return
    assert list(got.shape) == outcome["shape"] and got.dtype.name == outcome["dtype"]
    plain = wide(got)
    if plain.dtype.kind == "c":
        plain = np.stack([plain.real, plain.imag], axis=-1).astype(np.float64)
    if "values" in outcome:
        np.testing.assert_array_equal(plain, np.array(outcome["values"], object).astype(plain.dtype).reshape(plain.shape))
    else:
        assert hashlib.sha256(np.ascontiguousarray(plain).tobytes()).hexdigest() == outcome["sha256"]


def check_extension(case_id: str, got: Any) -> None:
    want = expected(case_id)
    if isinstance(want, np.ndarray):
        assert_same(got, want)
    else:
        assert got == want
