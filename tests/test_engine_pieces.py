"""A picture in pieces, as its decoder's process makes them, is answered as the whole picture is."""

from pathlib import Path

import pytest
from engine_doubles import noise_video
from engine_oracle import QUESTIONS, limits, make_oracle, request

from llava_mini_cli.pieces import ArrayRaster, pieces


@pytest.mark.parametrize("shape", [(48, 64), (90, 30)])
def test_pieces_are_answered_as_the_picture_is(tmp_path: Path, shape: tuple[int, int]) -> None:
    oracle = make_oracle(tmp_path)
    whole = noise_video(1, 5, *shape)
    engine = oracle.engine(limits())
    made = pieces(ArrayRaster(whole[0]), engine.still)[None]
    outcomes = list(engine.run([request("whole", whole, QUESTIONS[:2]), request("pieces", made, QUESTIONS[:2])]))
    said = {(one.key, one.prompt_index): one.token_ids for one in outcomes}  # pyright: ignore
    assert len(said) == 4
    assert [said["pieces", number] for number in range(2)] == [said["whole", number] for number in range(2)]
