# Mutants of the core: properties/mutation.py runs them, properties/MUTATION.md has the results.
MUTATION := .venv-mutation

mutation: $(MUTATION)/.installed
	$(MUTATION)/bin/python properties/mutation.py

mutation-%: $(MUTATION)/.installed
	$(MUTATION)/bin/python properties/mutation.py $*

# mutmut in an environment that sees the packages of the other one, and not the installation of this repository.
$(MUTATION)/.installed: $(INSTALLED)
	test -d $(MUTATION) || $(BIN)/python -m venv $(MUTATION)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(MUTATION)/packages.pth
	mv $(MUTATION)/packages.pth "$$($(MUTATION)/bin/python -c 'import site; print(site.getsitepackages()[0])')"
	$(MUTATION)/bin/python -m pip install --quiet --disable-pip-version-check mutmut==3.8.1
	@touch $@

# The laws: a random sample of each module's mutants; SAMPLE= how many, mutation-laws-_compare: one module.
mutation-laws: $(MUTATION)/.installed
	$(MUTATION)/bin/python properties/mutation_sample.py

mutation-laws-%: $(MUTATION)/.installed
	$(MUTATION)/bin/python properties/mutation_sample.py $*
