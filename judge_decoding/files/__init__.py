"""Files: JSON and lines are read within bounds, and written whole or not at all."""

from judge_decoding.files.growing import GrowingFile
from judge_decoding.files.json_text import JsonError, parse_json, read_bounded, read_object
from judge_decoding.files.lines import Line, read_lines
from judge_decoding.files.whole import write_whole

__all__ = [
    "GrowingFile",
    "JsonError",
    "Line",
    "parse_json",
    "read_bounded",
    "read_lines",
    "read_object",
    "write_whole",
]
