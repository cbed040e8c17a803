# Shared by dev/test and dev/valgrind, which source it after dev/lib.sh: a directory
# under /tmp, gone when the script ends, and the suites run in it.

# Short, since Unix sockets are made below it, and open to the runner.
work=$(mktemp -d /tmp/regpilot-test.XXXXXX)
cleanup()
{
	cd /
	# Whatever a test left works below our directory.
	left=$(find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$work*" 2>/dev/null | cut -d / -f 3)
	[ -z "$left" ] || kill -s KILL $left 2>/dev/null || :
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
exec </dev/null

# prepare_suites [ARGUMENT...]: builds a copy of the tree there, with arguments for
# make, installs the module into a copy of PostgreSQL, whose programs are in $bin,
# builds what the tests need, and goes into the copy of the tree.
prepare_suites()
{
	mkdir "$work/src" "$work/tmp"
	copy_sources "$work/src"
	build "$work/src" "$work/pg" "$@"
	make --silent -C "$work/src/t" PG_CONFIG=$pg_config
	chown -R "$runner" "$work"
	cd "$work/src"
	bin=$work/pg$bindir
	pgxs=$(dirname "$($pg_config --pgxs)")/../..
}

# install_clients: what t/clients needs from the npm registry, with the settings of the
# caller's npm, which the runner may not have. Nothing of the packages is run here.
install_clients()
{
	(
		cd "$work/src/t/clients"
		npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error \
			--cache="$work/npm" >/dev/null
	) || return
	rm -rf "$work/npm"
	chown -R "$runner" "$work/src/t/clients"
}

# What the suites find in their environment besides, as NAME=VALUE words.
suite_environment=

# run_regress: the pg_regress suites, in a temporary instance.
run_regress()
{
	cat >"$work/regress.conf" <<-CONF
		shared_preload_libraries = 'regpilot'
		regpilot.database = 'contrib_regression'
	CONF
	as_runner $suite_environment TMPDIR="$work/tmp" make --silent installcheck PG_CONFIG=$pg_config REGRESS_PREP= \
		REGRESS_OPTS="--bindir=$bin --temp-instance=$work/regress --temp-config=$work/regress.conf --no-locale --encoding=UTF8 --dbname=contrib_regression" || {
		[ ! -f regression.diffs ] || cat regression.diffs
		tail -n 40 "$work"/src/log/*.log "$work"/src/results/*.log 2>/dev/null || :
		return 1
	}
}

# run_tap FILE...: those TAP tests, which may build more. Where the server has assertions, none may fail: a
# test that kills processes would not notice one more.
run_tap()
{
	as_runner $suite_environment $(env | grep '^REGPILOT_TEST_' || :) \
		PATH="$bin:$PATH" PG_CONFIG="$pg_config" TMPDIR="$work/tmp" TESTDIR="$work/tap" \
		PG_REGRESS="$pgxs/src/test/regress/pg_regress" PERL5LIB="$pgxs/src/test/perl" \
		sh -c 'mkdir "$TESTDIR" && exec prove "$@"' sh --timer --jobs "$(nproc)" "$@" || return
	! grep -r 'TRAP: ' "$work/tap"
}
