from itertools import pairwise

import pytest

from pogmdm_core.estimate.samplers.schedule import geometric_levels


@pytest.mark.parametrize(("start", "end", "n_steps"), [(0.2, 0.02, 20), (10.0, 0.01, 1000), (0.3, 0.1, 1)])
def test_levels_fall_geometrically_from_start_to_end(start, end, n_steps):
    levels = geometric_levels(start, end, n_steps)
    assert len(levels) == n_steps + 1
    assert levels[0] == start
    assert levels[-1] == pytest.approx(end, rel=1e-9)
    ratios = [b / a for a, b in pairwise(levels)]
    assert max(ratios) < 1
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-9)
