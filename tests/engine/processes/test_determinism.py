"""Random numbers as a function of seed and purpose."""

from engine.processes.determinism import RngPurpose, rng


def test_neighboring_seeds_share_no_stream() -> None:
    draws = [
        rng(seed, purpose, epoch, index).integers(2**63)
        for seed in (51, 52)
        for purpose in (RngPurpose.SAMPLE, RngPurpose.ORDER, RngPurpose.STEP)
        for epoch in range(5)
        for index in range(50)
    ]
    assert len(set(draws)) == len(draws)
