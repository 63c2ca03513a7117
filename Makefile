# Everything a clone can do. `make demo` needs nothing but python3 (3.11 or later), make and a package index.

PYTHON ?= python3
# Which torch: `make setup TORCH='torch==2.13.0+cpu' PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu` takes a build
# without CUDA (0.2 GB instead of several); leave both out on a machine with an NVIDIA GPU.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
BENCH_VENV := .venv-bench
OLDEST_VENV := .venv-oldest
SOURCES := $(wildcard sensevoiced svctl tests tools benchmarks)
MANUAL := man1/svctl.1 man5/sensevoiced.toml.5 man8/sensevoiced.8

# Where `make install` puts things. DESTDIR is a package builder's staging folder: nothing outside it is touched.
DESTDIR ?=
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib/sensevoiced
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
CONFDIR ?= /etc/sensevoice
CACHEDIR ?= /var/cache/sensevoice
UNITDIR ?= $(PREFIX)/lib/systemd/system
USERUNITDIR ?= $(PREFIX)/lib/systemd/user
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
INSTALL_FROM ?= .
INSTALL_EXTRAS ?= [daemon,hub]
INSTALL_PIP_ARGS ?=
# Empty where no systemd runs: then users, folders and units are only placed, not put into force.
SYSTEMD ?= $(wildcard /run/systemd/system)
LIVE = [ -z '$(DESTDIR)' ] && [ -n '$(SYSTEMD)' ] && [ "$$(id -u)" = 0 ]
LIVE_USER = [ -z '$(DESTDIR)' ] && [ -n '$(SYSTEMD)' ] && [ -n "$$XDG_RUNTIME_DIR" ]

# Where `make install-user` puts things instead: all of it below the home folder, where systemd --user and the daemon look.
install-user uninstall-user: PREFIX = $(HOME)/.local
install-user uninstall-user: CONFDIR = $(or $(XDG_CONFIG_HOME),$(HOME)/.config)/sensevoice
install-user uninstall-user: CACHEDIR = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sensevoice
install-user uninstall-user: USERUNITDIR = $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/systemd/user

CHECK_PYTHON = $(PYTHON) -c 'import sys; \
	sys.exit("sensevoiced needs Python 3.11 or later: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
CONSTRAINTS = { sed -e '/^\#/d' -e '/^torch==/d' constraints.txt; echo '$(TORCH)'; }

# pip writes the first line of the script svctl as it is, and the kernel ends an interpreter's path at its first space: in such a
# folder sh has to start Python. Called with the folder of the environment's programs.
SPACED = @case '$(1)' in *' '*) \
	sed -i "1s|^\#!/.*python.*|\#!/bin/sh\n'''exec' \"$(1)/python3\" \"\$$0\" \"\$$@\"\n' '''|" '$(1)/svctl' ;; esac

export PIP_DISABLE_PIP_VERSION_CHECK := 1
ifdef PIP_EXTRA_INDEX_URL
export PIP_EXTRA_INDEX_URL
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The steps of an installation are prerequisites, and happen in the order they are named in.
.NOTPARALLEL:
.PHONY: help setup setup-dev demo test test-slow test-oldest check format accuracy bench bench-quick bench-setup faults fuzz soak man clean
.PHONY: install install-user install-program install-manual install-user-units install-settings
.PHONY: uninstall uninstall-user stop-system stop-user remove-program remove-manual remove-user-units remove-settings

help:
	@echo 'make setup      environment in .venv with the daemon and svctl'
	@echo 'make demo       start the daemon with the demo model, transcribe the sample clips, stop it'
	@echo 'make test       run all tests (test-slow: the long ones too; test-oldest: tests/cli with the oldest libraries)'
	@echo 'make check      lint, formatting, types, import layers'
	@echo 'make accuracy   measure the demo model on held-out speech'
	@echo 'make bench      measure against the alternatives, which bench-setup installs; bench-quick in three minutes'
	@echo 'make faults     the abuse tests as a table, one row an id; SLOW=1 runs the long ones too'
	@echo 'make fuzz       look for input that breaks the frame reader or the decoders, for TIME=60 seconds'
	@echo 'make soak       mixed load on a daemon for TIME=600 seconds: what grows, what is lost'
	@echo 'make man        write the manual pages into build/man, to read them before they are installed'
	@echo 'make install    into PREFIX=$(PREFIX), with systemd units; uninstall takes it out again'
	@echo 'make install-user   below your home, with units for systemctl --user; uninstall-user takes it out again'
	@echo 'make clean      remove the environments (.venv*) and everything built'

setup: $(STAMPS)/daemon

setup-dev: $(STAMPS)/dev

$(STAMPS)/venv:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

# The constraints in force: the file's, with the torch that was asked for. Rewritten only when that changes, so that asking for
# another torch installs again and asking for the same one does nothing.
$(STAMPS)/constraints.txt: $(STAMPS)/venv constraints.txt FORCE
	@$(CONSTRAINTS) > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

.PHONY: FORCE
FORCE:

# Which compiler there is, so that a first one is made use of. Its absence is no mistake: tools/build_native.py.
$(STAMPS)/compiler: $(STAMPS)/venv FORCE
	@command -v '$(firstword $(CC))' > $@.new || :
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# svctl/__main__.py is copied as the script svctl, native.c is compiled; all else is read from the checkout.
$(STAMPS)/daemon: $(STAMPS)/constraints.txt pyproject.toml svctl/__main__.py $(STAMPS)/compiler sensevoiced/engine/native.c tools/build_native.py
	$(BIN)/pip install --quiet -c $(STAMPS)/constraints.txt -e '.[daemon,hub]'
	$(call SPACED,$(CURDIR)/$(BIN))
	@touch $@

$(STAMPS)/dev: $(STAMPS)/daemon
	$(BIN)/pip install --quiet -c $(STAMPS)/constraints.txt -e '.[daemon,funasr,hub,dev]'
	$(call SPACED,$(CURDIR)/$(BIN))
	@touch $@

demo: $(STAMPS)/daemon
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tools/demo.sh

# pytest's own last lines name every skipped test with its reason, and count them.
test: $(STAMPS)/dev
	$(BIN)/pytest $(PYTEST_ARGS)

test-slow: $(STAMPS)/dev
	$(BIN)/pytest -m 'slow or not slow' $(PYTEST_ARGS)

# svctl and the daemon end to end with the oldest libraries that pyproject.toml allows: oldest.txt has to say what it says.
test-oldest:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/pip install --quiet -c oldest.txt '$(TORCH)' -e '.[daemon,dev]'
	$(OLDEST_VENV)/bin/pytest tests/cli $(PYTEST_ARGS)

check: $(STAMPS)/dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/pytest --quiet tests/test_layers.py

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

accuracy: $(STAMPS)/dev
	$(BIN)/python tools/accuracy.py

# The peers live apart, so that what they need never reaches the daemon's environment. Only pip is needed, and 2 GB.
bench-setup: $(BENCH_VENV)/installed

$(BENCH_VENV)/installed: $(STAMPS)/constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet -c $(STAMPS)/constraints.txt -r benchmarks/requirements.txt
	@touch $@

# Peers that are not installed (make bench-setup) are rows that say so. DEVICE=cuda:0 goes through to the program;
# BENCH_ARGS='--only clip,stock --rounds 3' picks.
bench: $(STAMPS)/dev
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-quick: $(STAMPS)/dev
	$(BIN)/python -m benchmarks --quick $(BENCH_ARGS)

faults: $(STAMPS)/dev
	$(BIN)/python tools/faults.py $(if $(SLOW),--slow) -- $(PYTEST_ARGS)

fuzz: TIME = 60
# The fuzzer is not in `dev`: it has no package for every machine, and the tests do without. Where it cannot be installed, the
# program says so in a sentence.
fuzz: $(STAMPS)/dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet -c $(STAMPS)/constraints.txt atheris 2>/dev/null || :
	$(BIN)/python -m tools.fuzz --seconds $(TIME)

soak: TIME = 600
soak: $(STAMPS)/dev
	$(BIN)/python -m tools.soak --seconds $(TIME)

# Pages are made of the tables by which the programs read their words, by any Python and without a package.
man:
	$(PYTHON) -B tools/man.py build/man
	@echo 'to read one: man -l build/man/man1/svctl.1'

install: install-program install-manual install-user-units install-settings
	install -d '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(SYSUSERSDIR)' '$(DESTDIR)$(TMPFILESDIR)'
	for unit in sensevoiced.socket sensevoiced.service; do \
		sed 's|/usr/local/bin/|$(BINDIR)/|g' systemd/$$unit > '$(DESTDIR)$(UNITDIR)'/$$unit || exit 1; \
	done
	install -m 0644 systemd/sysusers.d/sensevoiced.conf '$(DESTDIR)$(SYSUSERSDIR)/sensevoiced.conf'
	install -m 0644 systemd/tmpfiles.d/sensevoiced.conf '$(DESTDIR)$(TMPFILESDIR)/sensevoiced.conf'
	@if $(LIVE); then systemd-sysusers '$(SYSUSERSDIR)/sensevoiced.conf' && \
		systemd-tmpfiles --create '$(TMPFILESDIR)/sensevoiced.conf' && systemctl daemon-reload; fi
	@echo 'next, as root: sensevoiced fetch; systemctl enable --now sensevoiced.socket; usermod -aG sensevoice USER'

# Everything below the home folder, without root rights; nothing outside it is touched.
install-user: install-program install-manual install-user-units install-settings
	@if $(LIVE_USER); then systemctl --user daemon-reload || :; fi
	@echo 'next: $(BINDIR)/sensevoiced fetch; systemctl --user enable --now sensevoiced.socket'

# The package goes into an environment of its own by value (no -e): the checkout can be deleted afterwards.
install-program:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear '$(DESTDIR)$(LIBDIR)'
	@$(CONSTRAINTS) > '$(DESTDIR)$(LIBDIR)/constraints.txt'
	'$(DESTDIR)$(LIBDIR)/bin/python' -m pip install --quiet -c '$(DESTDIR)$(LIBDIR)/constraints.txt' \
		$(INSTALL_PIP_ARGS) '$(INSTALL_FROM)$(INSTALL_EXTRAS)'
	$(call SPACED,$(DESTDIR)$(LIBDIR)/bin)
	@# A staged environment must name the place it will live in, not the staging folder.
	@if [ -n '$(DESTDIR)' ]; then \
		grep -rlIF '$(DESTDIR)$(LIBDIR)' '$(DESTDIR)$(LIBDIR)/bin' '$(DESTDIR)$(LIBDIR)/pyvenv.cfg' \
		| xargs -r sed -i 's|$(DESTDIR)$(LIBDIR)|$(LIBDIR)|g'; fi
	install -d '$(DESTDIR)$(BINDIR)'
	ln -sfn '$(LIBDIR)/bin/svctl' '$(DESTDIR)$(BINDIR)/svctl'
	ln -sfn '$(LIBDIR)/bin/sensevoiced' '$(DESTDIR)$(BINDIR)/sensevoiced'

install-manual:
	install -d $(foreach page,$(MANUAL),'$(DESTDIR)$(MANDIR)/$(dir $(page))')
	$(PYTHON) -B tools/man.py '$(DESTDIR)$(MANDIR)'

install-user-units:
	install -d '$(DESTDIR)$(USERUNITDIR)'
	for unit in sensevoiced.socket sensevoiced.service; do \
		sed 's|/usr/local/bin/|$(BINDIR)/|g' systemd/user/$$unit > '$(DESTDIR)$(USERUNITDIR)'/$$unit || exit 1; \
	done

install-settings:
	install -d '$(DESTDIR)$(CONFDIR)'
	@if [ -e '$(DESTDIR)$(CONFDIR)/sensevoiced.toml' ]; then \
		cmp -s systemd/sensevoiced.toml '$(DESTDIR)$(CONFDIR)/sensevoiced.toml' || { \
			install -m 0644 systemd/sensevoiced.toml '$(DESTDIR)$(CONFDIR)/sensevoiced.toml.new' && \
			echo 'kept $(CONFDIR)/sensevoiced.toml; what is new lies beside it as sensevoiced.toml.new'; }; \
	else install -m 0644 systemd/sensevoiced.toml '$(DESTDIR)$(CONFDIR)/sensevoiced.toml'; fi

# Models, and a configuration that was changed, stay: they are the user's.
uninstall: stop-system remove-program remove-manual remove-user-units remove-settings
	rm -f '$(DESTDIR)$(UNITDIR)/sensevoiced.socket' '$(DESTDIR)$(UNITDIR)/sensevoiced.service'
	rm -f '$(DESTDIR)$(SYSUSERSDIR)/sensevoiced.conf' '$(DESTDIR)$(TMPFILESDIR)/sensevoiced.conf'
	@if $(LIVE); then rm -f '$(CACHEDIR)'/*.int8.pt; systemctl daemon-reload; fi

uninstall-user: stop-user remove-program remove-manual remove-user-units remove-settings
	@if $(LIVE_USER); then rm -f '$(CACHEDIR)'/*.int8.pt; systemctl --user daemon-reload || :; fi

stop-system:
	@if $(LIVE); then systemctl disable --now sensevoiced.socket sensevoiced.service || :; fi

stop-user:
	@if $(LIVE_USER); then systemctl --user disable --now sensevoiced.socket sensevoiced.service || :; fi

remove-program:
	rm -f '$(DESTDIR)$(BINDIR)/svctl' '$(DESTDIR)$(BINDIR)/sensevoiced'
	rm -rf '$(DESTDIR)$(LIBDIR)'

remove-manual:
	rm -f $(foreach page,$(MANUAL),'$(DESTDIR)$(MANDIR)/$(page)')

remove-user-units:
	rm -f '$(DESTDIR)$(USERUNITDIR)/sensevoiced.socket' '$(DESTDIR)$(USERUNITDIR)/sensevoiced.service'

remove-settings:
	rm -f '$(DESTDIR)$(CONFDIR)/sensevoiced.toml.new'
	@if cmp -s systemd/sensevoiced.toml '$(DESTDIR)$(CONFDIR)/sensevoiced.toml'; then \
		rm -f '$(DESTDIR)$(CONFDIR)/sensevoiced.toml'; fi
	@rmdir '$(DESTDIR)$(CONFDIR)' 2>/dev/null || :

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(OLDEST_VENV) sensevoiced/engine/libsensevoice* .bench .fuzz build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
