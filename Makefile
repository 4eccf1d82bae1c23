# Every door of the project. `make test` is the whole gate: it is what CI runs.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: demo suite test fmt lint doc unit crash soak mutations powercut powercut-mutations loom bench bench-instructions bench-baseline fuzz measure golden corpus

demo: ## a broker, 500,000 events, kill -9, the proof that nothing acknowledged is gone, and target numbers
	$(CARGO) build --release --locked -p coulee-cli -p coulee-loadgen
	COULEE=$${CARGO_TARGET_DIR:-target}/release/coulee DEMO_REPORT=$${CARGO_TARGET_DIR:-target}/suite python3 .ci/demo.py

suite: ## every row of the target numbers, half an hour; its report in DIR (default: target/suite)
	$(CARGO) build --release --locked -p coulee-cli -p coulee-loadgen
	$${CARGO_TARGET_DIR:-target}/release/coulee-loadgen suite --out $${DIR:-$${CARGO_TARGET_DIR:-target}/suite}

test: ## everything CI runs, each part with its time
	@bash .ci/test

fmt: ## formats the tree
	$(CARGO) fmt --all

lint: ## formatting and lints, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

doc: ## rustdoc, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

unit: ## all tests of all crates
	$(CARGO) build -p coulee-cli --profile test --locked
	$(CARGO) test --workspace --locked

crash: ## 100 rounds of kill -9 under load, then 100 power cuts, and a broker without syncs that has to be noticed
	@bash .ci/crash

soak: ## the simulator for SECONDS=… with new seeds, or with SEEDS=FROM..TO (default 0..10000)
	$(CARGO) run --profile test --locked -p coulee-tests --example sim -- \
		$(if $(SECONDS),--seconds $(SECONDS),--seeds $(or $(SEEDS),0..10000))

mutations: ## the simulator with one bug after the other switched on: each has to be noticed
	@bash .ci/mutations

powercut: ## 1,000 power cuts (CUTS=…) of the real broker, on ext4 and on xfs, a line for each in LOG; needs root
	@bash .ci/powercut

powercut-mutations: ## the same with brokers that leave one kind of sync out, each of which has to be noticed
	@bash .ci/powercut mutations

loom: ## the mesh in every interleaving, and two broken ones that have to be noticed
	@bash .ci/loom

bench: ## criterion benches of codec, validation, CRC, append, recovery, a table of their medians, and bench-instructions
	$(CARGO) bench -p coulee-bench --locked --bench codec --bench log
	python3 bench/medians.py
	$(MAKE) bench-instructions

bench-instructions: ## instructions of each hot piece against bench/baseline.tsv, in seconds; fails when one rises by 5 %
	$(CARGO) bench -p coulee-bench --locked --bench instructions

bench-baseline: ## writes bench/baseline.tsv anew, after a rise that is meant or a fall that is to last
	$(CARGO) bench -p coulee-bench --locked --bench instructions -- --write

fuzz: ## a million executions of each fuzz target; installs cargo-fuzz when it is missing
	@bash fuzz/run

measure: ## the figures of docs/decisions/001, in DIR (default: a temporary directory)
	$(CARGO) run --release --locked -p coulee-tests --example commit_costs -- --dir $${DIR:-$$(mktemp -d)}

golden: ## writes the golden files anew, after a deliberate change of format
	COULEE_GOLDEN=write $(CARGO) test --locked -p coulee-protocol --test golden
	COULEE_GOLDEN=write $(CARGO) test --locked -p coulee-core --test golden
