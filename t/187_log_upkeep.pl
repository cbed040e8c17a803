# The worker makes the partitions of the request log by itself, and a clock that is
# wrong costs no rows, whichever way it is wrong.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Clock;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(responder => 0);
my $node = $site->node;
my ($key_id) = $site->create_key;
$site->sql('SELECT regpilot.flush_usage()');    # so the worker is there

# What the worker does hourly it does at its start as well.
sub restart_worker
{
	my $worker = q{backend_type = 'regpilot worker'};
	my $pid = $site->sql("SELECT pg_terminate_backend(pid), pid FROM pg_stat_activity WHERE $worker") =~ s/^t\|//r;
	$node->poll_query_until('regpilot', "SELECT pid <> $pid FROM pg_stat_activity WHERE $worker")
	  or die 'no new worker';
	return;
}

# The day from which on there are eight partitions, by the clock as it is.
sub wait_for_partitions
{
	$node->poll_query_until('regpilot', <<~SQL) or die 'no partitions';
		SELECT count(to_regclass('regpilot.request_log_' || to_char(now() AT TIME ZONE 'UTC' + make_interval(days => i), 'YYYYMMDD'))) = 8
		FROM generate_series(0, 7) i
		SQL
	return;
}

sub record
{
	$site->sql("SELECT regpilot.record_many('{$key_id}', '{ci}', '{200}', '{1}', '{x}', '{1}', '{1}')");
	return;
}

sub rows { return $site->sql('SELECT count(*) FROM regpilot.request_log') }

restart_worker();
wait_for_partitions();
pass('the worker makes partitions for today and seven days more');
record();
is($site->sql(q{SELECT tableoid::regclass <> 'regpilot.request_log_default'::regclass FROM regpilot.request_log}),
	't', 'and the first row is in one of them');

# --- the clock is wrong from the start of the worker on

foreach my $days (5000, -5000)
{
	step_clock(86400 * $days);
	restart_worker();
	wait_for_partitions();
	is(rows(), 1, "$days days off: partitions are made, and none with rows is dropped");
}
step_clock(0);
restart_worker();
record();
is(rows(), 2, 'right again: all is there, and recording goes on');

# --- what one is asked for is done: a time that is named is no mistake of the clock

$site->sql(q{SELECT regpilot.maintain_request_log(now() + interval '40 days')});
is(rows(), 0, 'upkeep as of a time to come');

done_testing();
