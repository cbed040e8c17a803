# Crashes and restarts under the extension: what was flushed is kept, nothing is
# counted twice, and keys are checked again.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(responder => 0);
my $node = $site->node;
my ($key_id, $key) = $site->create_key;

# Authorises that many requests; returns how many passed.
sub authorize
{
	my ($count) = @_;
	return $site->sql(
		qq{SELECT count(*) FROM (SELECT (regpilot.authorize('$key')).verdict FROM generate_series(1, $count)) a WHERE verdict = 'ok'});
}

sub total { return $site->overview($key_id, 'total_requests') }

# by itself, within a flush interval or two
is(authorize(7), 7, 'authorised');
$node->poll_query_until('regpilot', q{SELECT sum(total_requests) = 7 FROM regpilot.key_usage});
is($site->sql("SELECT total_requests, active_environments FROM regpilot.key_overview WHERE key_id = '$key_id'"),
	'7|{other}', 'the worker flushes without being asked');

# a clean restart loses nothing, flushed or not
is(authorize(100), 100, 'authorised just before a restart');
$node->restart;
$site->wait_for_worker;
is(total(), 107, 'a clean restart keeps the exact total');

# settings of the database that would hinder a flush do not
$site->sql("ALTER DATABASE regpilot SET default_transaction_isolation = 'serializable'");
$site->sql("ALTER DATABASE regpilot SET default_transaction_read_only = on");
$node->restart;
$site->wait_for_worker;
is(authorize(1), 1, 'authorised in a read-only database');
is(total(), 108, 'settings of the database do not reach the worker');
$node->safe_psql('postgres', "ALTER DATABASE regpilot RESET ALL");
$node->restart;
$site->wait_for_worker;

# the worker dies: PostgreSQL restarts all
foreach my $round (1 .. 3)
{
	my $flushed = total();
	authorize(5);
	my $worker = $site->sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'regpilot worker'});
	kill 'KILL', $worker;
	$node->poll_query_until('regpilot',
		qq{SELECT pid <> $worker FROM pg_stat_activity WHERE backend_type = 'regpilot worker'});
	$site->wait_for_worker;
	my $total = total();
	cmp_ok($total, '>=', $flushed, "worker killed ($round): what was flushed is kept");
	cmp_ok($total, '<=', $flushed + 5, "worker killed ($round): nothing is counted twice");
	is(authorize(10), 10, "worker killed ($round): keys are checked again");
	is(total(), $total + 10, "worker killed ($round): and counted");
}

# the worker is only cancelled or terminated
foreach my $function (qw(pg_cancel_backend pg_terminate_backend))
{
	my $before = total();
	authorize(5);
	$site->sql("SELECT $function(pid) FROM pg_stat_activity WHERE backend_type = 'regpilot worker'");
	$site->wait_for_worker;
	is(total(), $before + 5, "$function: no count is lost");
}

# the postmaster dies
my $flushed = total();
authorize(5);
kill_whole_server($node);
$node->start;
$site->wait_for_worker;
my $total = total();
cmp_ok($total, '>=', $flushed, 'postmaster killed: what was flushed is kept');
cmp_ok($total, '<=', $flushed + 5, 'postmaster killed: nothing is counted twice');
is(authorize(10), 10, 'postmaster killed: keys are checked again');

# the extension is dropped and created under the worker
$site->sql('DROP EXTENSION regpilot CASCADE');
$site->sql('CREATE EXTENSION regpilot');
$site->{projects} = {};
$site->wait_for_worker;
($key_id, $key) = $site->create_key;
is(authorize(5), 5, 'extension created anew: keys are checked');
is(total(), 5, 'extension created anew: and counted');

# refusals of the server itself
sub sqlstate
{
	my ($database, $query) = @_;
	my ($result, $out, $err) = $node->psql($database, "\\set VERBOSITY sqlstate\n$query");
	return $err =~ /ERROR:\s+(\w{5})/ ? $1 : "none: $out$err";
}
$node->safe_psql('postgres', 'CREATE EXTENSION regpilot');
is(sqlstate('postgres', q{SELECT regpilot.authorize('x')}), '55000', 'a database that no worker serves: 55000');
is(sqlstate('postgres', q{SELECT regpilot.flush_usage()}), '55000', 'and nothing to flush there');

$node->append_conf('postgresql.conf', q{shared_preload_libraries = ''});
$node->restart;
foreach my $query (
	q{SELECT regpilot.authorize('x')},
	q{SELECT * FROM regpilot.authorize_many('{1}', '{x}', '{gateway:write}', '{NULL}')},
	q{SELECT regpilot.record_many('{}', '{}', '{}', '{}', '{}', '{}', '{}')},
	q{SELECT regpilot.flush_usage()},
	q{SELECT regpilot.flag_stale_keys()})
{
	is(sqlstate('regpilot', $query), '55000', "not preloaded: 55000 from $query");
}
my ($result, $out, $err) = $node->psql('regpilot', q{SELECT regpilot.authorize('x')});
like($err, qr/shared_preload_libraries/, 'not preloaded: the message says what to do');
like($site->sql(q{SELECT key FROM regpilot.create_key(regpilot.create_project('p'), 'k')}),
	qr/^sk_[0-9a-z]{32}$/, 'not preloaded: keys can be issued all the same');

done_testing();
