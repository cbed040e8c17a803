# The journal of usage: what is flushed there is in the totals sooner or later, once,
# whoever is in the way and whatever is killed meanwhile.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

my $keys = 12_000;    # more than are added to the totals with one flush

my $site = RegPilot::Test->new(responder => 0);
my $node = $site->node;
my $journaled = 'SELECT coalesce(sum(n), 0) FROM regpilot.usage_journal, unnest(total_requests) n';
my $total = 'SELECT coalesce(sum(total_requests), 0) FROM regpilot.key_usage';

sub poll
{
	my ($query, $what) = @_;
	return ok($node->poll_query_until('regpilot', $query), $what);
}

# Authorizes that many of the keys, once each, and returns how many passed.
sub authorize_keys
{
	my ($count) = @_;
	return $site->sql(
		qq{SELECT count(*) FROM (SELECT (regpilot.authorize(i::text::regpilot.secret)).verdict FROM generate_series(1, $count) i) a WHERE verdict = 'ok'});
}

# --- more keys than are added to the totals at once

$site->sql(qq{
	WITH p AS MATERIALIZED (SELECT regpilot.create_project('journal', 'enterprise') AS id)
	SELECT count(regpilot.import_key(p.id, 'key ' || i, sha256(i::text::bytea))) FROM p, generate_series(1, $keys) i});

is(authorize_keys($keys), $keys, "$keys keys are used");
poll("SELECT ($journaled) > 0 AND ($total) > 0", 'some are in the totals, others in the journal');
$node->stop('immediate');
$node->start;
$site->wait_for_worker;
is($site->sql("SELECT ($journaled) + ($total)"), $keys, 'a crash loses none of either, and adds none');
poll("SELECT ($journaled) = 0 AND ($total) = $keys", 'all get into the totals without being asked for');
is($site->sql('SELECT min(total_requests) || max(total_requests)::text FROM regpilot.key_usage'), '11', 'each once');

is(authorize_keys($keys), $keys, 'and again');
is($site->sql('SELECT regpilot.flush_usage() > 0'), 't', 'a flush on request');
is($site->sql($total), 2 * $keys, 'adds all to the totals before it returns');
is($site->sql($journaled), 0, 'and leaves nothing in the journal');

# --- the totals are locked

my $holder = $node->background_psql('regpilot');
foreach my $mode ('SHARE', 'ACCESS EXCLUSIVE')
{
	foreach my $table (qw(key_usage usage_history api_key))
	{
		next if $table eq 'api_key' && $mode ne 'SHARE';    # nobody could be authorized
		my $before = $site->sql("SELECT $keys * 2 + ($journaled)");
		my $lock = $table eq 'api_key' ? 'EXCLUSIVE' : $mode;
		$holder->query_safe("BEGIN; LOCK TABLE regpilot.$table IN $lock MODE");
		authorize_keys(7);
		poll("SELECT $keys * 2 + ($journaled) = $before + 7", "$table locked in $lock mode: flushed all the same");
		$holder->query_safe('ROLLBACK');
		is($site->sql('SELECT regpilot.flush_usage() >= 0'), 't', 'unlocked');
		$keys += 3.5;    # 2 * $keys is what the totals come to
		is($site->sql($total), 2 * $keys, 'all are added');
	}
}

# and the server crashes meanwhile
$holder->query_safe('BEGIN; LOCK TABLE regpilot.key_usage IN SHARE MODE');
authorize_keys(100);
poll("SELECT ($journaled) = 100", 'flushed while the totals are locked');
$node->stop('immediate');
$node->start;
$site->wait_for_worker;
$site->sql('SELECT regpilot.flush_usage()');
$keys += 50;
is($site->sql($total), 2 * $keys, 'nothing of that is lost in a crash');

# --- others are at the keys, or at the totals of one

sub worker { return $site->sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'regpilot worker'}) }

my $worker = worker();
my ($flagged, $flagged_key) = $site->create_key;
my ($other, $other_key) = $site->create_key;
$site->sql("UPDATE regpilot.api_key SET flagged_at = now() WHERE id = '$flagged'");
$holder = $node->background_psql('regpilot');
$holder->query_safe('BEGIN; LOCK TABLE regpilot.api_key IN SHARE MODE');
$site->sql("SELECT (regpilot.authorize('$flagged_key')).verdict");
poll("SELECT total_requests = 1 FROM regpilot.key_usage WHERE key_id = '$flagged'", 'keys locked: the use of a flagged one counts all the same');
$holder->query_safe('ROLLBACK');
is($site->sql('SELECT regpilot.flag_stale_keys()'), 0, 'no key is stale');
is($site->sql("SELECT flagged_at FROM regpilot.api_key WHERE id = '$flagged'"), '', 'and its flag is taken off');

$holder->query_safe(<<~SQL);
	BEGIN;
	INSERT INTO regpilot.key_usage (key_id, environment, total_requests, failed_requests, prompt_tokens, completion_tokens)
	VALUES ('$other', 'other', 100, 0, 0, 0);
	SELECT (regpilot.authorize('$other_key')).verdict
	SQL
my $unborn = $holder->query_safe(
	qq{SELECT regpilot.import_key(id, 'unborn', sha256('its key')) FROM regpilot.project WHERE name = 'journal'});
$holder->query_safe(q{SELECT regpilot.authorize('its key')});
$site->sql('SELECT regpilot.flush_usage()');
is($site->sql($journaled), 2, 'a row and a key that are not committed yet are waited for in the journal');
$holder->query_safe('COMMIT');
$site->sql('SELECT regpilot.flush_usage()');
is($site->sql("SELECT total_requests FROM regpilot.key_usage WHERE key_id = '$other'"), 101, 'the row');
is($site->sql("SELECT total_requests FROM regpilot.key_usage WHERE key_id = '$unborn'"), 1, 'the key');
is(worker(), $worker, 'and the worker went on all the while');

$site->sql("ALTER SYSTEM SET regpilot.flush_interval = '1min'");
$site->sql('SELECT pg_reload_conf()');
$site->sql('SELECT regpilot.flush_usage()');
$holder->query_safe('BEGIN; LOCK TABLE regpilot.key_usage IN SHARE MODE');
$site->sql("SELECT (regpilot.authorize('$other_key')).verdict");
my $asking = $node->background_psql('regpilot');
$asking->query_until(qr/asking/, "\\echo asking\nSELECT regpilot.flush_usage();\n");
poll("SELECT ($journaled) = 1", 'asked for while the totals are locked');
$holder->query_safe('ROLLBACK');
poll("SELECT ($journaled) = 0", 'done soon after, whatever the interval');
$asking->quit;
$site->sql('ALTER SYSTEM RESET regpilot.flush_interval');
$site->sql('SELECT pg_reload_conf()');
$holder->quit;

# --- rows that the worker has not written, as of a dump

my ($old, $old_key) = $site->create_key;
my ($new, $new_key) = $site->create_key;
$site->sql("SELECT (regpilot.authorize('$old_key')).verdict");
$site->sql('SELECT regpilot.flush_usage()');
my $gone = '00000000-0000-0000-0000-000000000000';
$site->sql(<<~SQL);
	UPDATE regpilot.key_usage SET hour = '2026-01-01 11:00+00', environment = 'dev', last_used_at = '2026-01-01 11:30+00' WHERE key_id = '$old';
	INSERT INTO regpilot.usage_journal
	SELECT 5, gen_random_uuid(), array_agg(k), array_agg('dev'::text), array_agg(h), array_agg(1), array_agg(2), array_agg(3), array_agg(4),
		array_agg(CASE WHEN h <> '2026-01-01 12:00+00' THEN h + interval '5 minutes' END)
	FROM unnest('{$old,$new,$gone}'::uuid[]) k,
		unnest('{2026-01-01 12:00+00,2026-01-01 10:00+00,2026-01-01 11:00+00,2026-01-01 11:00+00}'::timestamptz[]) h;
	SQL
$site->sql("SELECT (regpilot.authorize('1')).verdict");
my $flushes = 'SELECT flushed_at FROM regpilot.shared_memory_status()';
my $now = $site->sql('SELECT clock_timestamp()');
poll("SELECT ($flushes) > '$now'::timestamptz + interval '1 second'", 'the worker goes on');
is($site->sql($journaled), 12, 'and leaves them alone');
$site->sql('SELECT regpilot.flush_usage()');
is($site->sql($journaled), 0, 'a flush on request takes them in');
my $usage = q{SELECT total_requests, failed_requests, prompt_tokens, completion_tokens, last_used_at AT TIME ZONE 'UTC' FROM regpilot.key_usage WHERE key_id = };
is($site->sql("$usage '$old'"), '5|8|12|16|2026-01-01 11:30:00', 'a key with a row');
is($site->sql("$usage '$new'"), '4|8|12|16|2026-01-01 11:05:00', 'a key without one');
my $hourly = q{SELECT string_agg(to_char(hour AT TIME ZONE 'UTC', 'HH24') || ':' || total_requests || '/' || prompt_tokens, ' ' ORDER BY hour)
	FROM regpilot.usage_hourly WHERE total_requests > 0 AND key_id = };
is($site->sql("$hourly '$old'"), '10:1/3 11:3/6 12:1/3', 'its hours');
is($site->sql("$hourly '$new'"), '10:1/3 11:2/6 12:1/3', 'and of the other');
is($site->sql("SELECT count(*) FROM regpilot.key_usage WHERE key_id = '$gone'"), 0, 'a key that is no more');

# and of nobody: rows that cannot be taken stop the totals, not flushes or the server
my %strange = (
	'a key that is null' => [ '{NULL}', '{dev}', '{2026-01-01 12:00+00}', '{1}' ],
	'an environment that is null' => [ "{$old}", '{NULL}', '{2026-01-01 12:00+00}', '{1}' ],
	'an hour that is null' => [ "{$old}", '{dev}', '{NULL}', '{1}' ],
	'columns that differ in length' => [ "{$old}", '{dev}', '{2026-01-01 12:00+00}', '{1,2}' ],
);
foreach my $what (sort keys %strange)
{
	my $seen = -s $node->logfile;
	my $row = join ', ', map { "'$_'" } @{ $strange{$what} };
	$site->sql("INSERT INTO regpilot.usage_journal SELECT 5, '$gone', $row, '{1}', '{1}', '{1}', '{NULL}'");
	my $before = $site->sql($total);
	$site->sql('SELECT pg_terminate_backend(' . worker() . ')');    # the next one begins with such rows
	$node->wait_for_log(qr/ERROR:  .*\n.*CONTEXT:  row of table regpilot.usage_journal, partition 5/, $seen);
	authorize_keys(3);
	poll("SELECT ($journaled) >= 3 + (SELECT sum(n) FROM regpilot.usage_journal, unnest(total_requests) n WHERE writer = '$gone')",
		"$what: said so, and flushed all the same");
	unlike(slurp_file($node->logfile, $seen), qr/terminated by signal/, "$what: no crash");
	$site->sql("DELETE FROM regpilot.usage_journal WHERE writer = '$gone'");
	$site->sql('SELECT regpilot.flush_usage()');
	is($site->sql($total), $before + 3, "$what: deleted");
}

# --- a key is deleted while its first row is added

# The worker pauses when it has locked the keys and added to the totals.
$site->sql(<<~SQL);
	CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NEW; END';
	CREATE TRIGGER pause BEFORE INSERT ON regpilot.usage_history FOR EACH STATEMENT EXECUTE FUNCTION pause();
	SQL
my $pausing = q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'regpilot worker' AND wait_event = 'PgSleep'};
foreach my $change (q{UPDATE regpilot.api_key SET name = 'changed' WHERE id =}, 'SELECT FROM regpilot.api_key WHERE id =')
{
	my ($deleted, $deleted_key) = $site->create_key;
	$holder = $node->background_psql('regpilot');
	$holder->query_safe("BEGIN; $change '$deleted'");
	$site->sql("SELECT (regpilot.authorize('$new_key')).verdict");
	$site->sql('SELECT regpilot.flush_usage()');
	$site->sql("UPDATE regpilot.key_usage SET hour = '2026-01-01 11:00+00' WHERE key_id = '$new'");
	$site->sql("SELECT (regpilot.authorize('$deleted_key')).verdict, (regpilot.authorize('$new_key')).verdict");
	poll($pausing, "a fold after $change");
	$holder->query_safe("DELETE FROM regpilot.api_key WHERE id = '$deleted'; COMMIT");
	$holder->quit;
	$site->sql('SELECT regpilot.flush_usage()');
	is($site->sql("SELECT count(*) FROM regpilot.key_usage WHERE key_id = '$deleted'"), 0, 'leaves no row without a key');
}
$site->sql('DROP FUNCTION pause() CASCADE');

done_testing();
