"""Small matrix products as C++ of a compiled march's own.

A library packs the factors of a product and looks up what multiplies them at every call, which shows for a narrow layer
(`make bench NAME=ode_compiled`). Here a strip of rows of the first factor at a time is multiplied with
as many columns of the second as a vector register holds; the sums stay in registers.
"""

from typing import Any

import torch
from torch import Tensor
from torch._inductor import ir, lowering
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.kernel.mm_common import mm_args
from torch._inductor.utils import parallel_num_threads

MUCH = 2**22  # multiplications that are worth several threads
SMALL = 8192  # entries of the first factor, which stays in the first cache

SOURCE = """
extern "C"
{definition}
{{
    using Vector = at::vec::Vectorized<float>;
    using at::vec::fmadd;
    constexpr int64_t rows = {rows}, inner = {inner}, length = Vector::size();
    constexpr int64_t strip = length < 16 ? 8 : 16, rest = rows % strip;
    const int64_t columns = {columns};
    {parallel}
    for (int64_t j = 0; j < columns; j += length) {{
        alignas(64) float panel[inner * length];
        const int64_t width = std::min(length, columns - j);
        for (int64_t p = 0; p < inner; ++p) {{
            Vector x = Vector::loadu(&{b}, width);
            {activation}
            x.store(panel + p * length);
        }}
        auto multiply = [&](auto count, int64_t first) {{
            constexpr int64_t chains = count < 4 ? 4 : 1;
            Vector sums[chains][count];
            for (auto& chain : sums) for (auto& sum : chain) sum = Vector(0.0f);
            {start}
            auto add = [&](int64_t p, Vector (&chain)[count]) {{
                const Vector x = Vector::loadu(panel + p * length);
                #pragma GCC unroll 16
                for (int64_t r = 0; r < count; ++r) {{
                    const int64_t i = first + r;
                    chain[r] = fmadd(Vector({a}), x, chain[r]);
                }}
            }};
            for (int64_t p = 0; p < inner / chains * chains; p += chains) {{
                #pragma GCC unroll 4
                for (int64_t q = 0; q < chains; ++q) add(p + q, sums[q]);
            }}
            for (int64_t p = inner / chains * chains; p < inner; ++p) add(p, sums[0]);
            for (int64_t r = 0; r < count; ++r) {{
                const int64_t i = first + r;
                Vector sum = sums[0][r];
                for (int64_t q = 1; q < chains; ++q) sum = sum + sums[q][r];
                sum.store(&{c}, width);
            }}
        }};
        for (int64_t i = 0; i < rows - rest; i += strip) multiply(std::integral_constant<int64_t, strip>(), i);
        if constexpr (rest > 0) multiply(std::integral_constant<int64_t, rest>(), rows - rest);
    }}
}}
"""

START = "for (int64_t r = 0; r < count; ++r) sums[0][r] = Vector({bias});"

# tanh x = x P(x^2) / Q(x^2) for |x| < 9.01 and +-1 beyond: a weighted rational fit of degree (4, 4) whose relative
# error in float32 is at most 3.4e-7, 5.6 units in the last place
P = (0.99999997941514, 0.13380326042236, 0.0034947561688521, 2.0595355458690e-5, 1.3335568911244e-8)
Q = (1.0, 0.46713641527308, 0.025873819790532, 3.2842725874534e-4, 7.7687593008100e-7)
EDGE = 9.01


def _polynomial(c: tuple[float, ...]) -> str:
    """The C++ of c0 + c1 z + .. c4 z^4, given z and its square w."""
    k = [f"Vector({x!r}f)" for x in c]
    return f"fmadd(fmadd({k[4]}, w, fmadd({k[3]}, z, {k[2]})), w, fmadd({k[1]}, z, {k[0]}))"


TANH = f"""
            x = at::vec::clamp(x, Vector(-{EDGE}f), Vector({EDGE}f));
            const Vector z = x * x, w = z * z;
            x = x * {_polynomial(P)} / {_polynomial(Q)};
"""


def _eager(a: Tensor, b: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    found = torch.mm(a, b.tanh() if tanh else b)
    return found if bias is None else found + bias[:, None]


_library = torch.library.Library("sciml", "FRAGMENT")
_library.define("product(Tensor a, Tensor b, Tensor? bias, bool tanh) -> Tensor")
_library.impl("product", _eager, "CompositeExplicitAutograd")


@torch.library.register_fake("sciml::product", lib=_library)
def _(a: Tensor, b: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


product = torch.ops.sciml.product.default
"""a b (m, n), or a tanh b, plus a bias (m) if there is one."""


def suits(a: Tensor, b: Tensor) -> bool:
    """Whether a product (m, k) (k, n) is better computed here: m and k have to be known."""
    known = isinstance(a.shape[0], int) and isinstance(a.shape[1], int)
    return known and a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and a.shape[0] * a.shape[1] <= SMALL


def _parallel(size: int) -> str:
    """How the columns are shared out between threads, where these take longer than to start them."""
    threads = parallel_num_threads()
    return f"#pragma omp parallel for num_threads({threads}) if (columns > {MUCH // size})" if threads > 1 else ""


class Product(CppTemplate):
    """The C++ of a product."""

    def __init__(self, factors: list[Any], layout: Any, tanh: bool):
        self.activation = TANH if tanh else ""
        super().__init__("product", factors, layout, parallel_num_threads())

    def render(  # pyrefly: ignore[bad-override]
        self, kernel: Any, template_buffer_node: Any = None, **kwargs: Any
    ) -> str:
        """The source."""
        a, b, *bias = self.input_nodes
        c: Any = template_buffer_node or self.output_node
        definition = kernel.def_kernel(dict(zip(("a", "b", "bias"), self.input_nodes, strict=False)), {"c": c})
        rows, inner = a.get_size()
        entries = {"a": kernel.index(a, ["i", "p"]), "b": kernel.index(b, ["p", "j"]), "c": kernel.index(c, ["i", "j"])}
        entries["start"] = START.format(bias=kernel.index(bias[0], ["first + r"])) if bias else ""
        sizes = {"rows": rows, "inner": inner, "columns": kernel.size(c, 1)}
        texts = {"definition": definition, "activation": self.activation, "parallel": _parallel(rows * inner)}
        source = SOURCE.format(**texts, **entries, **sizes)
        return self.header().getvalue() + source


@lowering.register_lowering(product, type_promotion_kind=None)
def _lowered(a: Any, b: Any, bias: Any, tanh: bool) -> Any:
    *_, layout, a, b = mm_args(a, ir.ExternKernel.require_contiguous(b))
    given = (a, b) if bias is None else (a, b, ir.ExternKernel.realize_input(bias))
    factors = [x.data.data if isinstance(x, ir.TensorBox) else x for x in given]  # pyrefly: ignore[missing-attribute]
    found: Any = Product(factors, layout, tanh).generate().output_node()
    found.data.data.allow_epilogue_fusion = False
    return found
