"""Make exponax_vorticity.npz: vorticity that exponax (0.2.0) evolves, for test_navier_stokes.py to compare with.

Run `python tests/problems/make_exponax_reference.py` where exponax and jax are installed.
"""

from pathlib import Path

import numpy as np

POINTS, DT, STEPS, NU, DRAG, WAVENUMBER, AMPLITUDE = 48, 0.005, 200, 0.05, 0.1, 2, 0.7


def main() -> None:
    import exponax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    x = 2 * np.pi / POINTS * np.arange(POINTS)
    x, y = x[:, None], x[None]
    start = np.sin(x) * np.cos(2 * y) + 0.8 * np.cos(2 * x + y) - 0.5 * np.sin(y - 0.4) + 0.3 * np.cos(2 * x)
    # convection_scale=-1: exponax's vorticity is u_y - v_x, with ours as its input its velocity has the other sign
    common = {"diffusivity": NU, "order": 4}
    steppers = {
        "decaying": exponax.stepper.NavierStokesVorticity(
            2, 2 * np.pi, POINTS, DT, vorticity_convection_scale=-1.0, **common
        ),
        "kolmogorov": exponax.stepper.KolmogorovFlowVorticity(
            2,
            2 * np.pi,
            POINTS,
            DT,
            convection_scale=-1.0,
            drag=-DRAG,
            injection_mode=WAVENUMBER,
            injection_scale=AMPLITUDE,
            **common,
        ),
    }
    fields = {
        name: np.asarray(jax.jit(exponax.repeat(stepper, STEPS))(jnp.asarray(start[None])))[0]
        for name, stepper in steppers.items()
    }
    np.savez_compressed(Path(__file__).with_name("exponax_vorticity.npz"), start=start, **fields)


if __name__ == "__main__":
    main()
