"""The service that articles recommend: FastAPI, Uvicorn, a temporary file, one AutoModel a worker process.

Settings come from the environment, because uvicorn starts the workers: BENCH_MODEL, BENCH_VAD, BENCH_DEVICE,
perhaps BENCH_THREADS. Runs in the peers' environment.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fastapi import FastAPI, UploadFile
from funasr import AutoModel
from funasr.utils.postprocess_utils import rich_transcription_postprocess

app = FastAPI()
model = AutoModel(
    model=os.environ["BENCH_MODEL"],
    vad_model=os.environ["BENCH_VAD"],
    vad_kwargs={"max_single_segment_time": 30_000},
    device=os.environ["BENCH_DEVICE"],
    disable_update=True,
    disable_pbar=True,
    # FunASR takes four threads unless it is told otherwise, and articles do not tell it.
    **({"ncpu": int(os.environ["BENCH_THREADS"])} if "BENCH_THREADS" in os.environ else {}),
)


@app.get("/health")
async def health() -> dict[str, str]:
    """Say that the model is loaded: a worker listens only then."""
    return {"status": "ok"}


@app.post("/transcribe")
async def transcribe(file: UploadFile) -> dict[str, str | int]:
    """Transcribe an upload. On the event loop: AutoModel is not safe for threads."""
    with tempfile.NamedTemporaryFile(suffix=Path(file.filename or "").suffix) as kept:
        kept.write(await file.read())
        kept.flush()
        results = model.generate(
            input=kept.name, language="auto", use_itn=True, merge_vad=True, merge_length_s=15, batch_size_s=60
        )
    return {"text": rich_transcription_postprocess(results[0]["text"]), "pid": os.getpid()}
