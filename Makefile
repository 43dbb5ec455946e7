# Two commands: `make retrain` and `make test`. Both set up what they need, and are quick the second time.
# PYTHON=python3.12 make retrain   uses another interpreter.
PYTHON ?= python3
UV := $(or $(shell command -v uv),.uv/bin/uv)
READY := .venv/.ready

.PHONY: retrain image text test check ui lock clean

retrain: $(READY)
	.venv/bin/refit retrain

# Which built-in examples params.yaml names: pictures of digits, or texts.
image text: $(READY)
	.venv/bin/refit use $@

test: check
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

ui: $(READY)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow server --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

# Byte-compiled at once: a machine that keeps no .pyc files would compile torch anew at every start.
$(READY): requirements.lock pyproject.toml | $(UV)
	test -x .venv/bin/python || $(UV) venv --quiet --python $(PYTHON) --no-python-downloads .venv
	$(UV) pip install --quiet --python .venv --requirement requirements.lock --compile-bytecode
	$(UV) pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	touch $(READY)

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet uv

# New pins: edit pyproject.toml, then `make lock`. No index address is written.
lock: | $(UV)
	$(UV) pip compile pyproject.toml --group dev --extra team --extra dask --extra s3 --extra gs --extra sign --extra text \
	  --python-version 3.11 --universal \
	  --no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock

clean:
	rm -rf .venv .uv .refit .mypy_cache .ruff_cache .pytest_cache
