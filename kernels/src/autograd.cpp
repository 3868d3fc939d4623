// The fast kernels as functions of libtorch's autograd: memory and bookkeeping here, arithmetic in Rust.
//
// No exception leaves this file: a function that fails returns null and leaves its message to cab_last_error.

#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/autograd/custom_function.h>

#include <exception>
#include <string>

// The structures of src/rows.rs, src/scan and src/conv, field by field.
struct Rows {
  const float *start;
  std::ptrdiff_t batch_stride, row_stride;
};
struct ScanProblem {
  std::size_t batch, len, d_inner, d_state, backward;
  Rows x, dt, z, b, c;
  const float *a_log, *d_skip, *dt_bias;
};
struct ScanGradients {
  float *x, *dt, *a_log, *b, *c, *d_skip, *z, *dt_bias;
};
struct ConvProblem {
  std::size_t batch, len, d_inner, d_conv, backward;
  Rows x;
  const float *weight, *bias;
};
struct ConvGradients {
  float *x, *weight, *bias;
};

extern "C" {
std::size_t cab_scan_kept_states(const ScanProblem *);
void cab_scan_forward(const ScanProblem *, float *y, float *kept);
void cab_scan_backward(const ScanProblem *, const float *kept, const Rows *y, const ScanGradients *);
void cab_conv_forward(const ConvProblem *, float *y);
void cab_conv_backward(const ConvProblem *, const Rows *y, const ConvGradients *);
}

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The tensor itself where its channels lie side by side, whatever its other strides; else a copy.
Tensor with_rows(const Tensor &t) { return t.size(-1) == 1 || t.stride(-1) == 1 ? t : t.contiguous(); }

Rows rows(const Tensor &t) { return {t.const_data_ptr<float>(), t.stride(0), t.stride(1)}; }

Tensor gradient_like(const Tensor &t) { return at::empty(t.sizes(), t.options()); }

float *pointer(Tensor &t) { return t.mutable_data_ptr<float>(); }

// The gradients below are computed outside of autograd: asked for their own graph, silence would be a wrong answer.
void refuse_second_derivative() {
  TORCH_CHECK(!at::GradMode::is_enabled(), "the fast kernels have no second derivative; use the oracle");
}

enum ScanInput { X, DT, A_LOG, B, C, D_SKIP, Z, DT_BIAS, KEPT };

ScanProblem scan_problem(const variable_list &t, bool backward) {
  return {
      static_cast<std::size_t>(t[X].size(0)),
      static_cast<std::size_t>(t[X].size(1)),
      static_cast<std::size_t>(t[X].size(2)),
      static_cast<std::size_t>(t[A_LOG].size(1)),
      backward,
      rows(t[X]),
      rows(t[DT]),
      rows(t[Z]),
      rows(t[B]),
      rows(t[C]),
      t[A_LOG].const_data_ptr<float>(),
      t[D_SKIP].const_data_ptr<float>(),
      t[DT_BIAS].const_data_ptr<float>(),
  };
}

struct SelectiveScan : Function<SelectiveScan> {
  static Tensor forward(AutogradContext *ctx, const Tensor &x, const Tensor &dt, const Tensor &a_log, const Tensor &b,
                        const Tensor &c, const Tensor &d_skip, const Tensor &z, const Tensor &dt_bias, bool backward,
                        bool differentiable) {
    variable_list t = {with_rows(x),           with_rows(dt), a_log.contiguous(), with_rows(b), with_rows(c),
                       d_skip.contiguous(), with_rows(z),  dt_bias.contiguous()};
    const ScanProblem problem = scan_problem(t, backward);
    Tensor y = at::empty(x.sizes(), x.options());
    if (!differentiable) {
      cab_scan_forward(&problem, pointer(y), nullptr);
      return y;
    }
    Tensor kept = at::empty({static_cast<int64_t>(cab_scan_kept_states(&problem))}, x.options());
    cab_scan_forward(&problem, pointer(y), pointer(kept));
    t.push_back(kept);
    ctx->save_for_backward(t);
    ctx->saved_data["backward"] = backward;
    return y;
  }

  static variable_list backward(AutogradContext *ctx, variable_list outputs) {
    refuse_second_derivative();
    const variable_list t = ctx->get_saved_variables();
    const ScanProblem problem = scan_problem(t, ctx->saved_data["backward"].toBool());
    const Tensor y = with_rows(outputs[0]);
    const Rows y_rows = rows(y);
    variable_list g;
    for (int i = X; i <= DT_BIAS; ++i) g.push_back(gradient_like(t[i]));
    const ScanGradients gradients = {pointer(g[X]), pointer(g[DT]),     pointer(g[A_LOG]), pointer(g[B]),
                                     pointer(g[C]), pointer(g[D_SKIP]), pointer(g[Z]),     pointer(g[DT_BIAS])};
    cab_scan_backward(&problem, t[KEPT].const_data_ptr<float>(), &y_rows, &gradients);
    g.resize(10); // the direction and the switch have none
    return g;
  }
};

ConvProblem conv_problem(const variable_list &t, bool backward) {
  return {
      static_cast<std::size_t>(t[0].size(0)),
      static_cast<std::size_t>(t[0].size(1)),
      static_cast<std::size_t>(t[0].size(2)),
      static_cast<std::size_t>(t[1].size(2)),
      backward,
      rows(t[0]),
      t[1].const_data_ptr<float>(),
      t[2].const_data_ptr<float>(),
  };
}

struct CausalConv : Function<CausalConv> {
  static Tensor forward(AutogradContext *ctx, const Tensor &x, const Tensor &weight, const Tensor &bias,
                        bool backward) {
    const variable_list t = {with_rows(x), weight.contiguous(), bias.contiguous()};
    const ConvProblem problem = conv_problem(t, backward);
    Tensor y = at::empty(x.sizes(), x.options());
    cab_conv_forward(&problem, pointer(y));
    ctx->save_for_backward(t);
    ctx->saved_data["backward"] = backward;
    return y;
  }

  static variable_list backward(AutogradContext *ctx, variable_list outputs) {
    refuse_second_derivative();
    const variable_list t = ctx->get_saved_variables();
    const ConvProblem problem = conv_problem(t, ctx->saved_data["backward"].toBool());
    const Tensor y = with_rows(outputs[0]);
    const Rows y_rows = rows(y);
    variable_list g;
    for (const Tensor &input : t) g.push_back(gradient_like(input));
    const ConvGradients gradients = {pointer(g[0]), pointer(g[1]), pointer(g[2])};
    cab_conv_backward(&problem, &y_rows, &gradients);
    g.resize(4);
    return g;
  }
};

thread_local std::string last_error;

template <class F> Tensor *guarded(F f) {
  try {
    return new Tensor(f());
  } catch (const std::exception &e) {
    last_error = e.what();
  } catch (...) {
    last_error = "an exception without a message";
  }
  return nullptr;
}

} // namespace

extern "C" {

Tensor *cab_selective_scan(const Tensor *x, const Tensor *dt, const Tensor *a_log, const Tensor *b, const Tensor *c,
                           const Tensor *d_skip, const Tensor *z, const Tensor *dt_bias, int backward) {
  return guarded([=] {
    // Asked here, because inside of Function::forward gradients are always off.
    bool differentiable = false;
    if (at::GradMode::is_enabled()) {
      for (const Tensor *t : {x, dt, a_log, b, c, d_skip, z, dt_bias}) differentiable |= t->requires_grad();
    }
    return SelectiveScan::apply(*x, *dt, *a_log, *b, *c, *d_skip, *z, *dt_bias, backward != 0, differentiable);
  });
}

Tensor *cab_causal_conv(const Tensor *x, const Tensor *weight, const Tensor *bias, int backward) {
  return guarded([=] { return CausalConv::apply(*x, *weight, *bias, backward != 0); });
}

const char *cab_last_error() { return last_error.c_str(); }

const char *cab_libtorch_version() { return TORCH_VERSION; }
}
