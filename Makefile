# The PostgreSQL module, by PGXS, and the targets for people. The responder has
# a Makefile of its own in fcgi/.
#
#   make, make install, make installcheck    the usual PGXS habits; need pg_config
#   make run, make stop, make clean          a private RegPilot under var/
#   make test, make lint, make bench         install what they need themselves
#   make valgrind                            some tests again under memcheck
#   make sanitize                            the responder's tests again under ASan, UBSan and TSan
#   make fuzz                                the responder's fuzz targets, a minute each
#   make matrix                              all tests on each version of PostgreSQL; as root

EXTENSION = regpilot
MODULE_big = regpilot
OBJS = $(addprefix extension/, argument.o audit.o authorize.o catalog.o \
	columns.o elements.o fold.o histogram.o journal.o key.o lifecycle.o location.o member.o notify.o outcome.o ratelimit.o \
	regpilot.o requestlog.o restore.o rollup.o saved.o secret.o settings.o stale.o usage.o worker.o)
DATA = extension/regpilot--1.0.sql
REGRESS = setup key secret authorize ratelimit usage request_log analytics audit members import \
	rotate stale privileges

# pg_regress cannot drop a database that the worker is connected to.
REGRESS_PREP = drop-database

# Unused parameters are in the server's headers; PostgreSQL's own idiom
# for (int i = 0; i < lengthof(x); i++) compares signs.
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare

SHLIB_LINK = -lcrypto

# Bitcode would let the JIT inline our functions into expressions, which wins
# nothing here and needs the very clang that the server was built with.
override with_llvm = no

PG_CONFIG ?= pg_config

# The scripts must work before there is a pg_config, so PGXS comes in only for
# other goals.
scripts = run stop test lint bench valgrind fuzz sanitize matrix
goals = $(filter-out $(scripts), $(or $(MAKECMDGOALS), all))
ifneq (,$(goals))
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq (,$(PGXS))
include $(PGXS)
else ifneq (clean,$(strip $(goals)))
$(error $(PG_CONFIG) not found: install the development files of PostgreSQL, or set PG_CONFIG)
endif
endif

$(OBJS): $(wildcard extension/*.h)

all: responder
responder:
	$(MAKE) -C fcgi

drop-database:
	'$(bindir)/psql' -X -q -d postgres -c 'SET client_min_messages = warning' \
		-c 'DROP DATABASE IF EXISTS $(CONTRIB_TESTDB) WITH (FORCE)'

clean: clean-private
clean-private:
	dev/stop
	$(MAKE) -C fcgi clean
	rm -rf var

run stop test lint valgrind fuzz sanitize matrix:
	@dev/$@

bench:
	@dev/deps run bench
	@bench/run

.PHONY: $(scripts) responder drop-database clean clean-private
