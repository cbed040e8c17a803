# kill -9 of a process that serves a client, of the worker and of the postmaster,
# 20 times each, under load: no verdict is wrong, no count of before the last flush
# is lost and none counts twice, and server and worker are back.
#
# REGPILOT_TEST_SEED repeats the order of the kills, REGPILOT_TEST_KILLS says how
# many there are of each.

use strict;
use warnings;
use lib 't/lib';
use IPC::Open2;
use List::Util qw(max shuffle);
use RegPilot::Load;
use RegPilot::Replay;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep);

my $seed = $ENV{REGPILOT_TEST_SEED} // int(rand(2**31));
my $kills = $ENV{REGPILOT_TEST_KILLS} // 20;
srand($seed);
note("REGPILOT_TEST_SEED=$seed");

# Seconds that the worker may take to be back after the server is, which itself
# waits for one before it starts the worker.
my $restart_seconds = 10;

# Short, so that some kills hit a flush; and long, so that some hit what waits for
# one. In milliseconds.
my @flush_intervals = (10, 500);

my $site = RegPilot::Test->new(responder => 0, conf => $load_conf);
my $load = RegPilot::Load->new($site);
my $replay = RegPilot::Replay->new(flush_interval => 1_000_000);

# --- keys, and the verdicts that they may get

my %verdicts;

sub add_keys
{
	my ($verdicts, $count, $limit) = @_;
	my @numbers = $load->add_keys(sprintf q{
		SELECT k.key_id, k.key FROM generate_series(1, %d) i,
			regpilot.create_key('%s', 'key ' || i, requests_per_minute => %s) k},
		$count, $site->{project} //= $site->sql(q{SELECT regpilot.create_project('killed', 'enterprise')}), $limit // 'NULL');
	$verdicts{$_} = $verdicts foreach @numbers;
	$replay->limit($_, $limit) foreach @numbers;
	return @numbers;
}

my @unlimited = add_keys(['ok'], 50);
my @limited = map { add_keys([ 'ok', 'rate_limited' ], 2, $_) } 1, 10, 500, 5000;
my ($revoked) = add_keys(['revoked'], 1);
my ($disabled) = add_keys(['inactive'], 1);
my ($expired) = add_keys(['expired'], 1);
my ($unknown) = $load->add_keys(q{SELECT gen_random_uuid(), 'sk_nobody'});
$verdicts{$unknown} = ['invalid'];
$site->sql(sprintf q{SELECT regpilot.revoke_key('%s')}, $load->key_id($revoked));
$site->sql(sprintf q{SELECT regpilot.disable_key('%s')}, $load->key_id($disabled));
$site->sql(sprintf q{UPDATE regpilot.api_key SET expires_at = now() WHERE id = '%s'}, $load->key_id($expired));
my @numbers = sort { $a <=> $b } keys %verdicts;

# --- kills

# What is in the table, by key.
sub totals
{
	return map { split /\|/ } split /\n/,
	  $site->sql('SELECT key_id, sum(total_requests) FROM regpilot.key_usage GROUP BY key_id');
}

# What a judgement finds wrong, of all keys.
sub findings
{
	my ($judge) = @_;
	return [ map { my $finding = $judge->($_); $finding ne '' ? "key $_: $finding" : () } @numbers ];
}

$load->start(keys => \@numbers, burst => 100, pause => 50) for 1 .. 5;
$load->start(keys => \@numbers, burst => 100, pause => 50, transaction => 20);
$load->start(keys => \@numbers, burst => 20, pause => 50, batch => 8);
$load->start(keys => [@limited], burst => 100, pause => 50);

my %kill = (
	'a backend' => sub { $load->kill_backend },
	'the worker' => sub { $load->kill_worker },
	'the postmaster' => sub { $load->kill_postmaster },
);
my %slowest = map { $_ => 0 } 'worker', keys %kill;

foreach my $victim (shuffle map { ($_) x $kills } sort keys %kill)
{
	my $interval = $flush_intervals[ rand @flush_intervals ];
	$load->execute("ALTER SYSTEM SET regpilot.flush_interval = '$interval ms'");
	$load->execute('SELECT pg_reload_conf()');
	$replay->flush_interval(1000 * $interval);
	sleep 0.5 + rand 1.2;

	my %before = totals();
	my ($killed, $server, $worker) = $kill{$victim}->();
	$replay->crash($killed, $server);

	my $asked = now;
	$site->sql('SELECT regpilot.flush_usage()');
	my %after = totals();
	my $answered = now;
	$replay->read($load);

	is_deeply(
		findings(
			sub {
				my $id = $load->key_id($_[0]);
				my ($before, $after) = ($before{$id} // 0, $after{$id} // 0);
				return "$after after $before" if $after < $before;
				return $replay->wrong_total($_[0], $after, $asked, $answered);
			}),
		[],
		"$victim is killed, with a flush each $interval ms: totals are right");
	$replay->flushed($asked);

	$slowest{$victim} = max($slowest{$victim}, $server - $killed);
	$slowest{worker} = max($slowest{worker}, $worker - $server);
}
$load->stop;
$replay->read($load);

# --- judged

note($replay->summary);
note(sprintf 'the server is back %.2f s after a kill of %s', $slowest{$_} / 1e6, $_) foreach sort keys %kill;
note(sprintf 'and the worker is %.2f s after the server; these are the slowest', $slowest{worker} / 1e6);

cmp_ok($slowest{worker}, '<', 1e6 * $restart_seconds, 'the worker is back in time');
is_deeply(findings(sub { $replay->strange($_[0], @{ $verdicts{ $_[0] } }) }), [], 'no verdict is wrong');
is_deeply(findings(sub { $replay->excess($_[0]) }), [], 'no window of 60 seconds holds more admissions than the limit');
is_deeply(findings(sub { $replay->denied($_[0]) }), [], 'no request is refused while there is a place');
cmp_ok($replay->count('ok', @unlimited), '>', 1000, 'keys without a limit were admitted');
cmp_ok($replay->count('rate_limited', @limited), '>', 1000, 'keys with one were refused');
cmp_ok($replay->count($verdicts{$_}[0], $_), '>', 100, "the key that is $verdicts{$_}[0] was") foreach $revoked, $disabled, $expired, $unknown;

# --- a request that comes late

# When the postmaster is killed the worker saves the rate windows. A process that
# is asked before that and answers after it must not admit: what it admits is in
# no window. It gets the question while it is stopped.
my ($late) = $load->add_keys(sprintf q{SELECT key_id, key FROM regpilot.create_key('%s', 'late', requests_per_minute => 5)}, $site->{project});
my $ask = "SELECT verdict FROM regpilot.authorize('" . $load->key($late) . "')";
my $node = $site->node;
is($site->sql("$ask;" x 3), "ok\nok\nok", 'three of five places are taken');

my $connection = $node->connstr('regpilot');
my $psql = open2(my $out, my $in, qq{exec psql -XAtq -d "$connection" 2>/dev/null});
syswrite $in, "SELECT pg_backend_pid();\n";
chomp(my $backend = readline $out);
wait_until('the process to wait', sub { RegPilot::Load::state_of($backend) eq 'S' });
kill 'STOP', $backend;
syswrite $in, "\\echo asked\n$ask;\n";
is(readline $out, "asked\n", 'a fourth is asked for');
wait_until('psql to wait for an answer', sub { RegPilot::Load::state_of($psql) eq 'S' });

my $postmaster = $node->{_pid};
my @children = grep { $_ != $backend } RegPilot::Load::children($postmaster);
$node->kill9;
wait_until('the others to end', sub { !grep { RegPilot::Load::is_alive($_) } @children });
kill 'CONT', $backend;
close $in;
isnt(readline $out, "ok\n", 'what is answered after the windows were saved is not admitted');
waitpid $psql, 0;
$load->start_again($postmaster, $backend);
$site->wait_for_worker;
is($site->sql("$ask;" x 3), "ok\nok\nrate_limited", 'and two more are');

done_testing();
