# Mutants of the core, one module after the other, in a copy under runs/mutation: see properties/MUTATION.md. Each
# mutant is a fork of a process that has collected the tests; pytest's search for lost exceptions would take most
# of a fork's time, and imports that tests make are made before.
MUTATION := .venv-mutation
EVALUATE := loop vmap plan direct draws rules
MUTATED := sharing parameters fresh views groups grouping random $(EVALUATE)
TESTS_sharing := sharing
TESTS_parameters := parameters resharing messages
TESTS_fresh := parameters apply_state messages
TESTS_views := views views_tensordict messages
TESTS_groups := groups groups_errors apply_groups
TESTS_grouping := grouping
TESTS_random := random
TESTS_loop := apply apply_state apply_randomness apply_loop messages
TESTS_vmap := apply apply_state apply_randomness apply_vmap apply_repeated
TESTS_plan := plan apply apply_state
TESTS_direct := apply apply_direct apply_repeated
TESTS_draws := apply apply_direct apply_randomness
TESTS_rules := apply_direct apply_repeated
define NEWLINE


endef
define MUTMUT
[mutmut]
source_paths=functional_marl
only_mutate=functional_marl/$(if $(filter $(EVALUATE),$(1)),evaluate/)$(1).py
process_isolation=forkserver
timeout_constant=10
timeout_multiplier=5
pytest_add_cli_args=
  -p
  no:cacheprovider
  -p
  no:unraisableexception
  -p
  no:logging
  -p
  torch._dynamo
  -p
  tensordict
pytest_add_cli_args_test_selection=
$(foreach test,$(TESTS_$(1)),  tests/test_$(test).py
)  -k
  not compile and not need_no_torchrl
endef

mutation: $(MUTATED:%=mutation-%)

mutation-%: $(MUTATION)/.installed
	rm -rf runs/mutation/$*
	mkdir -p runs/mutation/$*
	cp -r functional_marl tests pyproject.toml runs/mutation/$*
	printf '$(subst $(NEWLINE),\n,$(call MUTMUT,$*))\n' > runs/mutation/$*/setup.cfg
	cd runs/mutation/$* && PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(CURDIR)/$(MUTATION)/bin/mutmut run --max-children 2
	cd runs/mutation/$* && $(CURDIR)/$(MUTATION)/bin/mutmut results

# mutmut in an environment that sees the packages of the other one, and not the installation of this repository.
$(MUTATION)/.installed: $(INSTALLED)
	test -d $(MUTATION) || $(BIN)/python -m venv $(MUTATION)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(MUTATION)/packages.pth
	mv $(MUTATION)/packages.pth "$$($(MUTATION)/bin/python -c 'import site; print(site.getsitepackages()[0])')"
	$(MUTATION)/bin/python -m pip install --quiet --disable-pip-version-check mutmut==3.8.1
	@touch $@
