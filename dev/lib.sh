# Shared by the scripts beside it, which source it; leaves the shell at the root
# of the tree.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd -P)

# use_postgres MAJOR [BINDIR]: the PostgreSQL that all is built for and run in from
# here on, in the scripts that are called too.
use_postgres()
{
	pgmajor=$1
	bindir=${2:-/usr/lib/postgresql/$1/bin}
	pg_config=$bindir/pg_config
	export REGPILOT_PGMAJOR="$pgmajor" REGPILOT_BINDIR="$bindir"
}
use_postgres "${REGPILOT_PGMAJOR:-15}" "${REGPILOT_BINDIR:-}"

# Nothing that the caller's environment says about other servers or an outer
# make may reach ours.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES CDPATH
for name in $(env | sed -n 's/^\(PG[A-Z_]*\)=.*/\1/p'); do unset "$name"; done
export LC_ALL=C

die()
{
	echo "${0##*/}: $*" >&2
	exit 1
}

# PostgreSQL refuses to run as root, so root runs everything as user postgres.
# Either way the command gets a small, known environment, to which NAME=VALUE
# words before it add.
reach=
if [ "$(id -u)" = 0 ]; then
	runner=postgres
	as_runner()
	{
		setpriv --reuid=postgres --regid=postgres --init-groups --reset-env $reach env "$@"
	}
else
	runner=$(id -un)
	as_runner()
	{
		env -i HOME="$HOME" PATH="$PATH" USER="$runner" LOGNAME="$runner" "$@"
	}
fi

# may_enter DIR: whether the runner can get at what is in DIR. Where root works in
# a directory closed to others, as mktemp makes them, the runner gets the one
# capability that it needs for that from here on; nobody else can reach in there.
# (The secure bit keeps it for access(2), which asks on behalf of the real user.)
may_enter()
{
	as_runner test -x "$1" && return
	[ "$(id -u)" = 0 ] || return
	reach="--inh-caps=+dac_read_search --ambient-caps=+dac_read_search --securebits=+no_setuid_fixup"
	as_runner test -x "$1" 2>/dev/null
}

# copy_sources DIR: the tree without what git ignores. Builds are made in such
# copies: nothing is left in the tree, nothing old in it gets into them, and the
# runner need not be able to read it. Files keep their times, for make. var is named
# since a copy into it must not contain itself, also where there is no .gitignore.
copy_sources()
{
	tar --create --exclude-vcs --exclude-vcs-ignores --exclude=./var . |
		tar --extract --no-same-owner --directory="$1"
}

# build DIR PGROOT [ARGUMENT...]: builds the copy of the tree in DIR and installs the
# module into a copy of PostgreSQL in PGROOT. Says nothing unless it fails.
# Arguments are for make.
build()
{
	build_dir=$1
	build_root=$2
	shift 2
	"$build_dir/dev/pgroot" "$build_root"
	make --silent -C "$build_dir" PG_CONFIG=$pg_config DESTDIR="$build_root" "$@" all install >"$build_dir/build.log" 2>&1 || {
		cat "$build_dir/build.log" >&2
		die "the build failed"
	}
}

# nginx_config PREFIX PORT SOCKET: the sample configuration, filled in.
nginx_config()
{
	sed -e "s|@PREFIX@|$1|g" -e "s|@PORT@|$2|g" -e "s|@SOCKET@|$3|g" "$root/fcgi/deploy/nginx.conf"
}

# What `make run` keeps. In $server, which only the runner may enter, lie the
# cluster, its socket, the responder's socket and all logs.
server=$root/var/server
pgroot=$root/var/root

# pids PROGRAM: our running processes of that program. Ours are those that work
# in $server or below it, so no pid file can mislead and orphans are found too.
pids()
{
	find /proc -mindepth 2 -maxdepth 2 -name cwd \( -lname "$server" -o \
		-lname "$server (deleted)" -o -lname "$server/*" \) 2>/dev/null |
	while read -r link; do
		case $(readlink "${link%cwd}exe") in
			*/"$1" | */"$1 (deleted)") basename "${link%/cwd}" ;;
		esac
	done
}

# master PROGRAM PIDFILE: the pid in that file, if it is one of ours.
master()
{
	[ -f "$2" ] || return 1
	read -r pid <"$2"
	case " $(pids "$1" | tr '\n' ' ')" in
		*" $pid "*) echo "$pid" ;;
		*) return 1 ;;
	esac
}

# end PROGRAM SIGNAL SECONDS [PIDFILE]: ends our processes of that program, by
# SIGKILL those that are still there after that time. With a pid file the signal
# goes to the master alone, if there is one: it looks after its children.
end()
{
	targets=$(master "$1" "${4:-}" || pids "$1")
	[ -z "$targets" ] || kill -s "$2" $targets 2>/dev/null || :
	for _ in $(seq $(($3 * 10))); do
		[ "$(pids "$1")" ] || return 0
		sleep 0.1
	done
	kill -s KILL $(pids "$1") 2>/dev/null || :
}

end_postgres() { end postgres INT 30 "$server/data/postmaster.pid"; }
end_responder() { end regpilot-fcgi TERM 10; }
end_nginx() { end nginx TERM 5; }
