# Every door to the project's tools. `make demo` and `make test` do all the set-up they need.
.PHONY: demo test check format docs bench serve clean venv

PYTEST = .venv/bin/python -m pytest -q

demo: ## A site, a host and three submissions on this machine, end to end
	@tools/venv.sh
	@.venv/bin/distributio demo

test: ## Everything: what `check` holds, then real processes, engines, databases and a browser
	@tools/venv.sh --dev
	@tools/parts.sh
	@$(MAKE) --no-print-directory style
	$(PYTEST) -n 2 --dist loadgroup --reruns 1 -r fER tests

check: ## The two-minute loop: style, types, rings, rules, formats, pages
	@tools/venv.sh --dev
	@$(MAKE) --no-print-directory style
	$(PYTEST) -n 2 tests/unit tests/surface

.PHONY: style
style:
	.venv/bin/ruff format --check src tests bench
	.venv/bin/ruff check src tests bench
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports

format: ## Lay the code out
	@tools/venv.sh --dev
	.venv/bin/ruff check --fix src tests bench
	.venv/bin/ruff format src tests bench

docs: ## Write the pages that are made from the program
	@tools/venv.sh --dev
	.venv/bin/python -m distributio.cli.documents --write

bench: ## Measure, beside the bare ceiling of the databases; writes bench/latest.json and docs/reference/performance.md
	@tools/venv.sh --dev
	@tools/parts.sh
	.venv/bin/python -m bench

serve: ## A site on this machine, with its data in ~/.local/share/distributio
	@tools/venv.sh
	@.venv/bin/distributio serve

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
