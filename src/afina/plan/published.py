"""Figures that makers publish of their devices: memory, dense throughput, bandwidth. Nothing here was measured.

Throughput is dense, without sparsity, of the tensor cores in bfloat16 and of float32 as torch uses it at its defaults
(no TF32). Sources: NVIDIA's data sheets of the products named; for GeForce the architecture white papers (GA102, AD102,
GB202); AMD's for MI300X.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import RecipeError, did_you_mean
from .probe import Speed

GIB, TERA = 2**30, 1e12
CONTEXT = GIB // 2
"""Bytes that a CUDA context takes of a device, about."""
REACHED = 0.66
"""The part of published throughput that large products are taken to reach, and of the bandwidth (products
of a large model reached 0.65 to 0.68 on an H200); `SIZES` of the probe reach less."""
_SMALL = (0.02, 0.2, REACHED)
_START = 1e-5
"""Seconds of an operation from Python on (a step of small operations on an H200)."""


@dataclass(frozen=True)
class Figures:
    """Of one device.

    Attributes:
        memory: GiB that CUDA names, which for the largest are fewer than in the name.
        bfloat16, float32: 10^12 operations a second.
        bandwidth: 10^12 bytes a second.
    """

    memory: int
    bfloat16: float
    float32: float
    bandwidth: float

    @property
    def free(self) -> int:
        """Bytes that a run may take."""
        return self.memory * GIB - CONTEXT

    def speed(self, dtype: str) -> Speed:
        """As the probe would give it, of the published figures."""
        most = (self.float32 if dtype == "float32" else self.bfloat16) * TERA
        flops = tuple(part * most for part in _SMALL)
        return Speed(flops, REACHED * self.bandwidth * TERA, REACHED * self.bandwidth * TERA, _START, measured=False,
                     overlaps=True)  # fmt: skip


DEVICES: Mapping[str, Figures] = MappingProxyType(
    {
        "T4 16GB": Figures(16, 65, 8.1, 0.32),
        "V100 16GB": Figures(16, 125, 15.7, 0.9),
        "V100 32GB": Figures(32, 125, 15.7, 0.9),
        "RTX 3090 24GB": Figures(24, 71, 35.6, 0.936),
        "RTX 4090 24GB": Figures(24, 165, 82.6, 1.008),
        "RTX 5090 32GB": Figures(32, 209, 104.8, 1.792),
        "A10 24GB": Figures(24, 125, 31.2, 0.6),
        "L4 24GB": Figures(24, 121, 30.3, 0.3),
        "L40S 48GB": Figures(48, 362, 91.6, 0.864),
        "A100 40GB": Figures(40, 312, 19.5, 1.555),
        "A100 80GB": Figures(79, 312, 19.5, 2.039),
        "H100 80GB": Figures(79, 989, 67, 3.35),
        "H200 141GB": Figures(139, 989, 67, 4.8),
        "B200 180GB": Figures(180, 2250, 80, 8.0),
        "MI300X 192GB": Figures(192, 1307, 163, 5.3),
    }
)


def published(name: str) -> tuple[str, Figures]:
    """The device of that name; case and blanks do not count, nor the memory where there is one such device.

    Raises:
        RecipeError: there is none, or several; names the nearest.
    """
    wanted = _plain(name)
    fit = [known for known in DEVICES if wanted == _plain(known)]
    fit = fit or [known for known in DEVICES if _plain(known).startswith(wanted)] if wanted else []
    if len(fit) == 1:
        return fit[0], DEVICES[fit[0]]
    if fit:
        raise RecipeError("several devices have this name", where="--device", got=name, expected=" or ".join(fit))
    raise RecipeError("no figures of this device are known", where="--device", got=name,
                      expected=", ".join(DEVICES), fix=did_you_mean(name, DEVICES))  # fmt: skip


def _plain(name: str) -> str:
    return "".join(name.lower().replace("nvidia", "").replace("geforce", "").split())
