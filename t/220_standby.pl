# A hot standby checks keys with counters and windows of its own, hears of all that
# the primary commits, and once it is promoted goes on with what it has counted.

use strict;
use warnings;
use lib 't/lib';
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use RegPilot::Test;
use Test::More;

# The replay of a vacuum would wait for transactions on the standby.
my $site = RegPilot::Test->new(responder => 0, streaming => 'logical', conf => "autovacuum = off\n");
my $primary = $site->node;

my (%id, %key);
($id{$_}, $key{$_}) = $site->create_key foreach qw(unlimited revoked revoked_later recorded project_limit);
($id{own_limit}, $key{own_limit}) = $site->create_key(requests_per_minute => 3);
($id{$_}, $key{$_}) = $site->create_key(requests_per_minute => 5) foreach qw(window_1 window_2);
($id{plan_limit}, $key{plan_limit}) = $site->create_key(plan => 'growth');
$site->sql("SELECT regpilot.revoke_key('$id{revoked}')");
# as many as fit nowhere: the texts 'many 1' to 'many 3000', without a limit
$site->sql(<<~SQL);
	INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions)
	SELECT '$site->{projects}{enterprise}', 'many ' || i, 'sk_...', sha256(('many ' || i)::bytea), '{gateway:write}'
	FROM generate_series(1, 3000) i
	SQL

$primary->backup('backup');

# follow(name, settings): a standby of the primary that has replayed all
sub follow
{
	my ($name, $conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init_from_backup($primary, 'backup', has_streaming => 1);
	$node->append_conf('postgresql.conf', "max_standby_streaming_delay = -1\n$conf");
	$node->start;
	$primary->wait_for_catchup($node);
	return $node;
}

my $standby = follow('standby', '');

# The verdicts of so many requests of one key, one after the other.
sub verdicts
{
	my ($node, $key, $count) = @_;
	return $node->safe_psql('regpilot',
		"SELECT string_agg((regpilot.authorize('$key')).verdict::text, ' ') FROM generate_series(1, $count)");
}

# SQLSTATE and message of the error that a query ends in
sub error
{
	my ($node, $query) = @_;
	my ($result, $out, $err) = $node->psql('regpilot', "\\set VERBOSITY verbose\n$query");
	return $err =~ /ERROR:\s+(.*)/ ? $1 : "none: $out$err";
}

sub worker_count
{
	my ($node) = @_;
	return $node->safe_psql('regpilot',
		q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'regpilot worker'});
}

# Its total in the tables of that node.
sub total
{
	my ($node, $name) = @_;
	return $node->safe_psql('regpilot', "SELECT total_requests FROM regpilot.key_overview WHERE key_id = '$id{$name}'");
}

# --- verdicts

# Sessions that have been there all along, and keep what they can between calls.
my $session = $standby->background_psql('regpilot');
my $transaction = $standby->background_psql('regpilot');

sub session_verdict
{
	my ($psql, $name) = @_;
	return $psql->query_safe("SELECT verdict FROM regpilot.authorize('$key{$name}')");
}

sub session_limit
{
	my ($name) = @_;
	return $session->query_safe("SELECT requests_per_minute FROM regpilot.authorize('$key{$name}')");
}

is(verdicts($standby, $key{unlimited}, 2), 'ok ok', 'a good key');
is(verdicts($standby, $key{revoked}, 1), 'revoked', 'a revoked one');
is(verdicts($standby, 'nobody', 1), 'invalid', 'an unknown one');
is($standby->safe_psql('regpilot',
		"SELECT (regpilot.authorize('$key{unlimited}', 'admin')).verdict"), 'forbidden', 'a permission it has not');

is(verdicts($primary, $key{own_limit}, 2), 'ok ok', 'two places of three are taken on the primary');
is(verdicts($standby, $key{own_limit}, 4), 'ok ok ok rate_limited', 'and three on the standby, whose windows are its own');
is(verdicts($primary, $key{own_limit}, 2), 'ok rate_limited', 'nor are they known on the primary');

is($standby->safe_psql('regpilot', <<~SQL), "1|ok\n2|invalid\n3|rate_limited\n4|revoked", 'many at once');
	SELECT ordinal, verdict FROM regpilot.authorize_many('{1,2,3,4}',
		ARRAY['$key{unlimited}', 'nobody', '$key{own_limit}', '$key{revoked}']::regpilot.secret[],
		'{gateway:write,gateway:write,gateway:write,gateway:write}', '{NULL,NULL,NULL,NULL}')
	ORDER BY ordinal
	SQL

is(verdicts($standby, $key{recorded}, 3), 'ok ok ok', 'requests to record');
is($standby->safe_psql('regpilot', <<~SQL), 3, 'outcomes are taken');
	SELECT regpilot.record_many('{$id{recorded},$id{recorded},$id{recorded}}', '{other,other,other}',
		'{200,500,429}', '{1,1,1}', '{m,m,m}', '{10,NULL,1}', '{20,NULL,2}')
	SQL

# --- what a standby cannot do

like(error($standby, 'SELECT regpilot.flush_usage()'),
	qr/^25006: cannot execute regpilot\.flush_usage\(\) during recovery$/, 'flush_usage() says why it cannot');
my %write = (
	create_project => q{'p'},
	create_key => "'$site->{projects}{enterprise}', 'k'",
	import_key => "'$site->{projects}{enterprise}', 'k', sha256('a key')",
	rotate_key => "'$id{unlimited}'",
	revoke_key => "'$id{unlimited}'",
	disable_key => "'$id{unlimited}'",
	enable_key => "'$id{unlimited}'",
	review_key => "'$id{unlimited}'",
	flag_stale_keys => q{now() + interval '1 year'});
foreach my $function (sort keys %write)
{
	like(error($standby, "SELECT regpilot.$function($write{$function})"), qr/^25006: /, "$function() is refused: 25006");
}
is(worker_count($standby), 0, 'there is no worker before a promotion');
is(total($standby, 'unlimited'), 0, 'nor is anything written');

# --- changes on the primary hold once they are replayed

is(session_verdict($session, $_), 'ok', "$_: good before the change") foreach qw(revoked_later plan_limit project_limit);
$transaction->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
is(session_verdict($transaction, 'revoked_later'), 'ok', 'good in a transaction too');

sub on_primary
{
	my ($query) = @_;
	$site->sql($query);
	$primary->wait_for_catchup($standby);
}

on_primary("SELECT regpilot.revoke_key('$id{revoked_later}')");
is(session_verdict($session, 'revoked_later'), 'revoked', 'a revoked key is refused');
is(session_verdict($transaction, 'revoked_later'), 'revoked', 'in a transaction that has an older snapshot too');
$transaction->query_safe('COMMIT');

on_primary("SELECT regpilot.disable_key('$id{unlimited}')");
is(session_verdict($session, 'unlimited'), 'inactive', 'a disabled key is refused');
on_primary("SELECT regpilot.enable_key('$id{unlimited}')");
is(session_verdict($session, 'unlimited'), 'ok', 'an enabled one is not');

foreach my $limit (400, 600)
{
	on_primary("UPDATE regpilot.plan SET requests_per_minute = $limit WHERE name = 'growth'");
	is(session_limit('plan_limit'), $limit, "a limit of $limit of the plan holds, in a session that knew another");
}
on_primary("UPDATE regpilot.project SET plan = 'free' WHERE id = '$site->{projects}{enterprise}'");
is(session_limit('project_limit'), 10, 'and another plan of the project');
on_primary("UPDATE regpilot.project SET plan = 'enterprise' WHERE id = '$site->{projects}{enterprise}'");

my (undef, $new_key) = $site->create_key(environment => 'ci');
$primary->wait_for_catchup($standby);
is(verdicts($standby, $new_key, 1), 'ok', 'a new key is good');

# Replay waits for any lock that a session holds on what it needs exclusively.
$transaction->query_safe('BEGIN');
is(session_verdict($transaction, 'unlimited'), 'ok', 'a request in an open transaction');
on_primary('VACUUM FULL regpilot.api_key');
on_primary('REINDEX TABLE regpilot.api_key');
on_primary('ALTER TABLE regpilot.api_key ADD COLUMN added int DEFAULT 1');
is(session_verdict($transaction, 'unlimited'), 'ok', 'is in no way of the replay, and what it replays not in its');
on_primary('ALTER TABLE regpilot.api_key DROP COLUMN added');
$transaction->query_safe('COMMIT');

# --- more keys than shared memory has room for: nothing can be flushed

my $small = follow('small', 'regpilot.max_keys = 100');
is(verdicts($small, $key{own_limit}, 4), 'ok ok ok rate_limited', 'a small standby: a window that binds');
is($small->safe_psql('regpilot', <<~SQL), 'ok|3000', 'keys without a limit find a slot, be it at the cost of counts');
	SELECT verdict, count(*)
	FROM (SELECT (regpilot.authorize(('many ' || i)::regpilot.secret)).verdict FROM generate_series(1, 3000) i) a
	GROUP BY verdict
	SQL
is(verdicts($small, $key{own_limit}, 1), 'rate_limited', 'but not at that of a window that binds');
$small->stop;

# --- a restart keeps what cannot be flushed

$_->quit foreach $session, $transaction;
is(verdicts($standby, $key{window_1}, 6), 'ok ok ok ok ok rate_limited', 'a window is filled');
$standby->restart;
is(verdicts($standby, $key{window_1}, 1), 'rate_limited', 'and outlasts a restart of the standby');
$session = $standby->background_psql('regpilot');

# --- promotion

# What the primary counts last is written as it stops, and replayed. Those who
# receive its changes stay until it has ended, and are not waited for.
my $received = '';
my $receive = IPC::Run::start(
	[
		'pg_recvlogical', '--dbname', $primary->connstr('regpilot'), '--slot', 'slot', '--create-slot', '--start',
		'--no-loop', '--plugin', 'test_decoding', '--file', '-' ],
	'>', \$received, '2>', \my $receive_log);
$primary->poll_query_until('regpilot', q{SELECT active FROM pg_replication_slots WHERE slot_name = 'slot'}, 't')
  or die $receive_log;
is(verdicts($primary, $key{unlimited}, 7), join(' ', ('ok') x 7), 'requests just before the primary stops');
$primary->stop('fast');
$receive->finish;
like($received, qr/key_usage.*\Q$id{unlimited}\E.*total_requests\[bigint\]:7 /, 'the last counts are decoded');
$standby->poll_query_until('regpilot', q{SELECT count(*) = 0 FROM pg_stat_wal_receiver})
  or die 'the standby does not hear of the stop';
is(total($standby, 'unlimited'), 7, 'and replayed, to the last one');
is(total($standby, 'own_limit'), 3, 'as are earlier ones');

is(session_verdict($session, 'unlimited'), 'ok', 'keys are checked without a primary') foreach 1 .. 3;
is(verdicts($standby, $key{window_2}, 6), 'ok ok ok ok ok rate_limited', 'and windows filled');

$standby->promote;
is(verdicts($standby, $key{window_2}, 1), 'rate_limited', 'a window outlasts the promotion');
is(session_verdict($session, 'unlimited'), 'ok', 'as does a session');
$standby->poll_query_until('regpilot', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'regpilot worker'});
is(worker_count($standby), 1, 'the worker comes');
cmp_ok($session->query_safe('SELECT regpilot.flush_usage()'), '>=', 0, 'and flushes for a session that has been there before');

# on the primary; on the standby, before the promotion and after
my %total = (
	unlimited => 7 + 2 + 1 + 1 + 2 + 3 + 1,
	own_limit => 3 + 3,
	revoked => 0,
	revoked_later => 2,
	recorded => 3,
	plan_limit => 3,
	project_limit => 2,
	window_1 => 5,
	window_2 => 5);
is(total($standby, $_), $total{$_}, "$_: all requests are counted, once") foreach sort keys %total;
is($standby->safe_psql('regpilot', <<~SQL), '2|11|22', 'and their outcomes');
	SELECT failed_requests, prompt_tokens, completion_tokens FROM regpilot.key_usage WHERE key_id = '$id{recorded}'
	SQL

# A primary like any other
is(verdicts($standby, $key{unlimited}, 10), join(' ', ('ok') x 10), 'counting goes on');
$standby->safe_psql('regpilot', "SELECT regpilot.revoke_key('$id{plan_limit}')");
is(session_verdict($session, 'plan_limit'), 'revoked', 'keys can be revoked');
like($standby->safe_psql('regpilot', "SELECT key FROM regpilot.create_key('$site->{projects}{enterprise}', 'k')"),
	qr/^sk_/, 'and made');
$session->quit;
$standby->restart;
$standby->poll_query_until('regpilot', q{SELECT (regpilot.authorize('nobody')).verdict}, 'invalid');
is(total($standby, 'unlimited'), $total{unlimited} + 10, 'and a clean restart loses nothing');

# --- a standby made of a copy of the stopped primary

# The worker saves what was not flushed when the postmaster dies.  The primary
# flushes that when it starts again, and a standby replays it.
$standby->safe_psql('regpilot', "ALTER SYSTEM SET regpilot.flush_interval = '60s'");
$standby->reload;
$standby->poll_query_until('regpilot', q{SHOW regpilot.flush_interval}, '1min');
$standby->safe_psql('regpilot', 'SELECT regpilot.flush_usage()');
is(verdicts($standby, $key{unlimited}, 4), join(' ', ('ok') x 4), 'requests just before the postmaster dies');
kill_whole_server($standby);
ok(-e $standby->data_dir . '/pg_stat/regpilot.stat', 'they are saved');
$standby->backup_fs_cold('stopped');

$standby->start;
$standby->poll_query_until('regpilot', q{SELECT (regpilot.authorize('nobody')).verdict}, 'invalid');
$standby->safe_psql('regpilot', 'SELECT regpilot.flush_usage()');
is(total($standby, 'unlimited'), $total{unlimited} + 14, 'and flushed');

my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($standby, 'stopped', has_streaming => 1);
$copy->start;
$standby->wait_for_catchup($copy);
is(verdicts($copy, $key{unlimited}, 2), 'ok ok', 'the copy counts for itself');
$copy->restart;
$standby->stop;
$copy->promote;
$copy->poll_query_until('regpilot', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'regpilot worker'});
$copy->safe_psql('regpilot', 'SELECT regpilot.flush_usage()');
is(total($copy, 'unlimited'), $total{unlimited} + 16, 'it adds its own counts, and not again those that it replayed');

done_testing();
