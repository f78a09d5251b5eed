"""Questions from local files: JSONL, and the CSV and Parquet files data sets are published in."""

from pytest_vllmperf.adapters.question_files.published import read_published
from pytest_vllmperf.adapters.question_files.reading import read_questions

__all__ = ["read_published", "read_questions"]
