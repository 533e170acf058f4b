// Lets torch-sys' C++, which is written for torch 2.13, compile against torch 2.10 to 2.15.
//
// It is included ahead of that C++ and declares the operators that a version lacks. No code of this package calls one
// of them; a call would raise an error in words.
#pragma once

#if __has_include(<torch/headeronly/version.h>)

#include <stdexcept>
#include <string>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <torch/headeronly/version.h>

namespace heimdall {

[[noreturn]] inline void lacks(const char *name) {
  throw std::runtime_error("torch " + std::to_string(TORCH_VERSION_MAJOR) + "." +
                           std::to_string(TORCH_VERSION_MINOR) + " has no operator " + name);
}

} // namespace heimdall

#define HEIMDALL_LACKS(result, name)                                                                                   \
  template <typename... Arguments> result name(Arguments &&...) {                                                      \
    heimdall::lacks(#name);                                                                                            \
  }

namespace torch {

using TwoTensors = std::tuple<at::Tensor, at::Tensor>;

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 11
HEIMDALL_LACKS(bool, _use_miopen_ctc_loss)
HEIMDALL_LACKS(TwoTensors, miopen_ctc_loss)
HEIMDALL_LACKS(TwoTensors, miopen_ctc_loss_out)
#endif

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 12
HEIMDALL_LACKS(at::Tensor, _flash_attention_forward_no_dropout_inplace)
HEIMDALL_LACKS(at::Tensor, _philox_key_fold_in)
HEIMDALL_LACKS(at::Tensor, _philox_key_split)
HEIMDALL_LACKS(at::Tensor, _philox_normal)
HEIMDALL_LACKS(at::Tensor, _philox_normal_)
HEIMDALL_LACKS(at::Tensor, _philox_normal_out)
HEIMDALL_LACKS(at::Tensor, _philox_uniform)
HEIMDALL_LACKS(at::Tensor, _philox_uniform_)
HEIMDALL_LACKS(at::Tensor, _philox_uniform_out)
HEIMDALL_LACKS(at::Tensor, _upsample_lanczos2d_aa)
HEIMDALL_LACKS(at::Tensor, _upsample_lanczos2d_aa_backward)
HEIMDALL_LACKS(at::Tensor, _upsample_lanczos2d_aa_backward_out)
HEIMDALL_LACKS(at::Tensor, _upsample_lanczos2d_aa_out)
// It has fewer arguments there.
HEIMDALL_LACKS(TwoTensors, _scaled_dot_product_attention_math_for_mps)
#endif

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 14
HEIMDALL_LACKS(at::Tensor, cholesky)
HEIMDALL_LACKS(at::Tensor, cholesky_out)
HEIMDALL_LACKS(TwoTensors, qr)
HEIMDALL_LACKS(TwoTensors, qr_out)
#endif

} // namespace torch

#undef HEIMDALL_LACKS

#endif
