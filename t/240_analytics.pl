# Sums of the request log are those of its rows, also while these are written, after
# a crash, when the clock is set back and on a standby; and what the dashboard asks
# reads a small part of a big log.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Cluster;
use RegPilot::Clock;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $site = RegPilot::Test->new(responder => 0, streaming => 'logical');
my $node = $site->node;
my @keys = map { ($site->create_key(environment => $_))[0] } qw(prod ci dev);
my $project = $site->sql(q{SELECT id FROM regpilot.project WHERE plan = 'enterprise'});

# How many requests the log has, and how many the sums, in one snapshot.
sub counts
{
	my ($server) = @_;
	return $server->safe_psql('regpilot', <<~SQL);
		SELECT (SELECT count(*) FROM regpilot.request_log WHERE project_id = '$project'
				AND at >= (a ->> 'from')::timestamptz AND at < (a ->> 'to')::timestamptz),
			a #>> '{totals,requests}', (SELECT sum((k ->> 'requests')::int) FROM jsonb_array_elements(a -> 'keys') k),
			(SELECT sum((s ->> 'requests')::int) FROM jsonb_array_elements(a -> 'series') s)
		FROM regpilot.analytics('$project', '{"period": "week"}') a
		SQL
}

# Whether they are the same; also a number that there must be.
sub counts_are
{
	my ($what, $count) = @_;
	return is(counts($node), join('|', ($count) x 4), $what);
}

sub record
{
	my ($count) = @_;
	return "SELECT regpilot.record_many(array_fill('$keys[0]'::uuid, '{$count}'), array_fill('prod'::text, '{$count}'), array_fill(200, '{$count}'),"
	  . " array_fill(5, '{$count}'), array_fill('m'::text, '{$count}'), array_fill(1::bigint, '{$count}'), array_fill(1::bigint, '{$count}'))";
}

sub rolled_up { return $site->sql('SELECT sum(requests) FROM regpilot.request_rollup WHERE kind = \'day\'') || 0 }

# --- while sessions write, the worker rolls up, and one of them takes long to commit

my $slow = $node->background_psql('regpilot', on_error_stop => 1);
$slow->query_safe('BEGIN; ' . record(7));
my $end = time + 25;
my $results = $site->in_parallel(
	4,
	sub {
		my ($n) = @_;
		my %count = (recorded => 0, differ => 0, checks => 0);
		while (time < $end)
		{
			if ($n == 0)
			{
				my ($log, @sums) = split /\|/, counts($node);
				$count{differ} += grep { ($_ || 0) != $log } @sums;
				$count{checks}++;
				sleep 0.2;
				next;
			}
			$count{recorded} += $_ foreach split /\n/, $site->sql(join ';', (record(50)) x 10);
		}
		return \%count;
	});
my $recorded = $results->{recorded};
cmp_ok($recorded, '>', 10000, 'requests are recorded');
cmp_ok($results->{checks}, '>', 5, 'and summed meanwhile');
is($results->{differ}, 0, 'the sums are always those of the log');
counts_are('in the end too', $recorded);
my $rolled_up = rolled_up();
cmp_ok($rolled_up, '<', $recorded, "a session still writes: $rolled_up are rolled up");
$slow->query_safe('COMMIT');
counts_are('what it commits counts', $recorded += 7);
wait_until('the worker', sub { rolled_up() == $recorded }, 60);
counts_are('and is rolled up', $recorded);

# --- after a crash

$node->stop('immediate');
$node->start;
$site->wait_for_worker;
$site->sql(record(5));
counts_are('after a crash', $recorded += 5);

# --- on a standby

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$site->sql(record(3));
$recorded += 3;
$node->wait_for_catchup($standby);
is(counts($standby), counts($node), 'on a standby');
is($standby->safe_psql('regpilot', "SELECT jsonb_array_length(regpilot.log_page('$project') -> 'data'), regpilot.key_page('$project') -> 'total',
	jsonb_array_length(regpilot.audit_page('$project') -> 'data') > 1"), '100|3|t', 'as the pages');
$standby->stop;

# --- the clock is set back, and right again

# What was recorded before is then of a time to come, and in the sums when it comes.
foreach my $step (-7200, 0)
{
	step_clock($step);
	$site->sql(record(2));
	$recorded += 2;
	wait_until(
		"the sums of a clock that is off by $step s",
		sub {
			my ($log, @sums) = split /\|/, counts($node);
			return $log >= ($step ? 2 : $recorded) && !grep { ($_ || 0) != $log } @sums;
		},
		60);
	pass("$step s off: the sums are those of the log");
}
wait_until('the worker', sub { rolled_up() == $recorded }, 90);
counts_are('rolled up as well', $recorded);

# --- a log of 30 days: what is read of it

$site->sql(<<~SQL);
	SELECT regpilot.maintain_request_log(now() - make_interval(days => i)) FROM generate_series(30, 0, -5) i;
	INSERT INTO regpilot.request_log (at, project_id, key_id, environment, status, latency_ms, model, prompt_tokens, completion_tokens)
	SELECT now() - make_interval(secs => i * 8.6), '$project', (ARRAY['$keys[0]', '$keys[1]', '$keys[2]'])[1 + i % 3]::uuid, 'ci',
		CASE i % 10 WHEN 0 THEN 500 ELSE 200 END, i % 1000, 'model ' || i % 5, 1, 1
	FROM generate_series(1, 300000) i;
	SELECT regpilot.roll_up_request_log(now() - interval '40 days');
	ANALYZE regpilot.request_log;
	ANALYZE regpilot.request_rollup;
	SQL
my $today = $site->sql(q{SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')});

# The plans of what a call executes, with the rows that they read.
sub plans
{
	my ($call) = @_;
	my ($status, $out, $err) = $node->psql('regpilot', <<~SQL);
		LOAD 'auto_explain';
		SET auto_explain.log_min_duration = 0;
		SET auto_explain.log_nested_statements = on;
		SET auto_explain.log_analyze = on;
		SET auto_explain.log_timing = off;
		SET client_min_messages = log;
		SELECT length((regpilot.$call)::text);
		SQL
	is($status, 0, $call);
	my $rows = 0;
	foreach (split /\n/, $err)
	{
		my ($actual, $loops) = /(?:Scan|Scan Backward) .* on request_\w+ .*actual rows=([0-9.]+) loops=(\d+)/ or next;
		$rows += $actual * $loops;
	}
	unlike($err, qr/Seq Scan on request_log_\d/, 'reads no day of the log whole');
	return ($err, $rows);
}

my $page = qq{log_page('$project'%s)};
my @calls = (
	[ q{}, 101 ],
	[ q{, '{"limit": "1000"}'}, 1001 ],
	[ $site->sql(q{SELECT format(', %L', jsonb_build_object('to', to_char(now() - interval '20 days', 'YYYY-MM-DD')))}), 101 ],
	[ $site->sql(q{SELECT format(', %L', jsonb_build_object('cursor', (extract(epoch FROM now() - interval '20 days') * 1000000)::bigint || '.1'))}), 101 ],
	[ q{, '{"status": "418"}'}, 100000 ]);
foreach my $call (@calls)
{
	my ($plan, $rows) = plans(sprintf $page, $call->[0]);
	like($plan, qr/Index (?:Only )?Scan Backward using request_log_\d+_project_id_at_id_idx/, 'reads the log by its index');
	# one more of each partition, from which the latest is taken
	cmp_ok($rows, '<', $call->[1] + 60, "and no more than $call->[1] rows");
	cmp_ok($rows, '>', 100, 'of it');
}

foreach my $period (qw(day week month))
{
	foreach my $filter ({}, { key_id => $keys[1] }, { model => 'model 3' })
	{
		my ($plan, $rows) = plans("analytics('$project', '" . JSON::PP::encode_json({ period => $period, %$filter }) . q{')});
		unlike($plan, qr/ on request_log_(?!$today)\d/, 'reads nothing of the log of earlier days');
		cmp_ok($rows, '<', 6000, 'and some of its sums');
	}
}
is((split /\|/, counts($node))[0], (split /\|/, counts($node))[1], 'which are right');

done_testing();
