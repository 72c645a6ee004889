"""Orthogonal wavelet filters: Daubechies' of minimal phase, the more symmetric ones of the same length, coiflets.

Daubechies 1988, Orthonormal Bases of Compactly Supported Wavelets; Daubechies 1993, Orthonormal Bases of Compactly
Supported Wavelets II. Names are the field's: dbN and symN have 2 N coefficients, coifN has 6 N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

_OUTSIDE: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {2: (), 3: (), 4: (1,), 5: (0,), 6: (0, 2), 7: (0,), 8: (1, 3), 9: (1, 2), 10: (0, 2, 4)}
)
"""symN: which of the pairs of conjugate roots (a real one is a pair too), by ascending magnitude, lie outside."""

# fmt: off
_COIFLETS: Mapping[int, tuple[float, ...]] = MappingProxyType({
    1: (
        -0.07273261951252645, 0.3378976624574818, 0.8525720202116004, 0.3848648468648578, -0.07273261951252645,
        -0.01565572813579199,
    ),
    2: (
        0.01638733646320364, -0.04146493678687178, -0.06737255472372559, 0.3861100668227629, 0.8127236354494135,
        0.4170051844232391, -0.07648859907828076, -0.05943441864643109, 0.02368017194684777, 0.005611434819368834,
        -0.001823208870911032, -0.000720549445520347,
    ),
    3: (
        -0.003793512864380802, 0.007782596425672746, 0.02345269614207717, -0.06577191128146936,
        -0.06112339000297255, 0.4051769024091182, 0.7937772226260872, 0.42848347637737, -0.07179982161915484,
        -0.08230192710629983, 0.03455502757329774, 0.01588054486366945, -0.009007976136730624,
        -0.002574517688136797, 0.00111751877083063, 0.0004662169598204029, -7.0983302506379e-05,
        -3.459977319727278e-05,
    ),
    4: (
        0.000892313902537003, -0.001629492425226786, -0.007346167936268051, 0.01606894713157503,
        0.02668230466960483, -0.08126671024919373, -0.05607731960356926, 0.4153084270006823, 0.7822389344242826,
        0.4343860331143565, -0.06662747236681717, -0.09622042453595264, 0.03933442260558915, 0.02508225333794961,
        -0.01521172818769721, -0.005658283800130883, 0.003751434697146087, 0.00126656107892566,
        -0.0005890202246332165, -0.0002599743371222568, 6.233885431278719e-05, 3.122986159919526e-05,
        -3.259647940030751e-06, -1.784990914493347e-06,
    ),
    5: (
        -0.000212081862067494, 0.0003585777411617577, 0.002178294377845695, -0.00415931262757864,
        -0.01013158484690028, 0.02340832211892778, 0.02816974427053235, -0.09192158806008609, -0.05204667025355476,
        0.4215712667307543, 0.7742936228603274, 0.4379823066591634, -0.06203775157498196, -0.1055631513073372,
        0.04128753047211783, 0.03267479946705736, -0.01975839160096547, -0.009159507338676163, 0.006761520220620417,
        0.002431575442538289, -0.001661627303929879, -0.0006375589261258812, 0.0003018579416682448,
        0.0001403563281237324, -4.12198619242655e-05, -2.127022167251561e-05, 3.70072771133948e-06,
        2.061220398578878e-06, -1.623799517204834e-07, -9.604010112767894e-08,
    ),
})
# fmt: on
"""The solutions of orthonormality with 2 N vanishing moments of the wavelet and 2 N - 1 of the scaling function."""

FAMILIES = (*(f"db{n}" for n in range(1, 11)), *(f"sym{n}" for n in _OUTSIDE), *(f"coif{n}" for n in _COIFLETS))


def low_pass(name: str) -> Tensor:
    """The reconstructing low-pass filter of a family in `FAMILIES`: (length,), float64, sum √2."""
    number = int(name.lstrip("dbsymcoif"))
    if name.startswith("coif"):
        return torch.tensor(_COIFLETS[number], dtype=torch.float64)
    return daubechies(number, _OUTSIDE[number] if name.startswith("sym") else ())


def daubechies(moments: int, outside: tuple[int, ...] = ()) -> Tensor:
    """The orthogonal low-pass filter of that many vanishing moments, (2 · moments,), sum √2.

    Its transfer function is (1 + z)^N times the roots of the half-band polynomial Σ_k C(N - 1 + k, k) y^k,
    y = (2 - z - 1/z) / 4, that lie inside the unit circle (minimal phase), or, for the pairs numbered in `outside`,
    their inverses.
    """
    roots = [torch.tensor(-1.0, dtype=torch.complex128)] * moments
    if moments > 1:
        terms = [math.comb(moments - 1 + k, k) for k in range(moments)]
        companion = torch.diag(torch.ones(moments - 2, dtype=torch.complex128), -1)
        companion[:, -1] = -torch.tensor(terms[:-1], dtype=torch.complex128) / terms[-1]
        half = 1 - 2 * torch.linalg.eigvals(companion)
        root = torch.sqrt(half * half - 1)
        inside = torch.where((half + root).abs() < 1, half + root, half - root)
        # One of each pair of conjugates; a real root stands alone.
        upper = sorted(inside[inside.imag > -1e-9].tolist(), key=abs)
        for number, z in enumerate(upper):
            chosen = 1 / z if number in outside else z
            pair = (chosen, chosen.conjugate()) if abs(z.imag) > 1e-9 else (chosen,)
            roots += [torch.tensor(r, dtype=torch.complex128) for r in pair]
    taps = torch.ones(1, dtype=torch.complex128)
    for r in roots:
        taps = F.pad(taps, (0, 1)) - r * F.pad(taps, (1, 0))
    return taps.real * math.sqrt(2) / taps.real.sum()
