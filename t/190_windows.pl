# No minute holds more admissions of a key than its limit, none is refused for less,
# and totals are the number of admissions, whatever is done to clients, server and
# clock: with keys of many limits, many connections, and their logs to judge by.
#
# What happens is random. REGPILOT_TEST_SEED repeats the choices of a run, if not
# their timing; REGPILOT_TEST_SECONDS says how long it goes on, and
# REGPILOT_TEST_EVENTS=terminate,limit for one confines what happens.

use strict;
use warnings;
use lib 't/lib';
use List::Util qw(min max);
use PostgreSQL::Test::Utils;
use RegPilot::Clock;
use RegPilot::Load;
use RegPilot::Replay;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep);

my $seed = $ENV{REGPILOT_TEST_SEED} // int(rand(2**31));
my $seconds = $ENV{REGPILOT_TEST_SECONDS} // 130;
srand($seed);
note("REGPILOT_TEST_SEED=$seed");

# How many of each there are.
my %events = (
	terminate => 8,     # connections are ended
	client => 8,        # a client is killed
	limit => 16,        # a limit, a plan or a project's plan is changed
	clock => 10,        # the server's wall clock is stepped
	restart => 3,       # of the server, clean
	stop => 1,          # an immediate one, and a start
	backend => 2,       # kill -9 of a process that serves a client
	worker => 2,        # kill -9
	postmaster => 2,    # kill -9
);
if ($ENV{REGPILOT_TEST_EVENTS})
{
	my %wanted = map { $_ => 1 } split /,/, $ENV{REGPILOT_TEST_EVENTS};
	delete @events{ grep { !$wanted{$_} } keys %events };
}

my @limits = (1, 2, 7, 10, 100, 1000, 100000, undef);
my @steps = map { ($_, -$_) } 1, 30, 59, 61, 3600, 86400;    # seconds

sub random_of { return $_[ rand @_ ] }
sub literal { return $_[0] // 'NULL' }

my $site = RegPilot::Test->new(responder => 0, conf => "$load_conf\nregpilot.flush_interval = 1s\nregpilot.max_keys = 200\n");
my $load = RegPilot::Load->new($site);
my $replay = RegPilot::Replay->new(flush_interval => 1_000_000);

step_clock(3600);
cmp_ok($site->sql('SELECT extract(epoch FROM clock_timestamp())') - time, '>', 3000, 'the wall clock of the server can be stepped');
step_clock(0);

# --- exact

my @fixed = (1, 7, 1000, 100000);
my @hot = $load->add_keys(sprintf q{
	SELECT k.key_id, k.key FROM regpilot.create_project('hot', 'enterprise') p,
		unnest(ARRAY[%s]) l, regpilot.create_key(p, 'limit ' || l, requests_per_minute => l) k ORDER BY l}, join ',', @fixed);
$replay->limit($_, $fixed[$_]) foreach @hot;

$load->start(keys => \@hot, refusals => 200, batch => $_ % 2 ? 1 : 64) foreach 1 .. 8;
$load->wait_for($_) foreach $load->running;
$replay->read($load);
foreach my $number (@hot)
{
	my $admitted = RegPilot::Replay::calls($replay->key($number), 'ok');
	my $took = (max(@{ $admitted->{received} }) - min(@{ $admitted->{sent} })) / 1e6;
  SKIP:
	{
		skip "this machine takes $took s for $fixed[$number] requests", 1 if $took >= 60;
		is($replay->count('ok', $number), $fixed[$number], "a limit of $fixed[$number]: as many are admitted, of 8 connections'");
	}
}

# --- random

# Plans, their projects, and the keys of these, with a limit of their own or not.
my (%plan, @project, @key);
foreach my $n (0 .. $#limits)
{
	my $name = "plan-$n";
	$plan{$name} = random_of(@limits);
	my $limit = literal($plan{$name});
	$site->sql("INSERT INTO regpilot.plan VALUES ('$name', $limit)");
	push @project, { id => $site->sql("SELECT regpilot.create_project('project $n', '$name')"), plan => $name };
}
foreach my $n (0 .. 39)
{
	my $project = random_of(@project);
	my $own = rand() < 0.5 ? random_of(@limits) : undef;
	my ($number) = $load->add_keys(sprintf q{SELECT key_id, key FROM regpilot.create_key('%s', 'key %d', requests_per_minute => %s)},
		$project->{id}, $n, literal($own));
	$key[$number] = { project => $project, own => $own };
}
my @random = grep { $key[$_] } 0 .. $#key;

sub limit_of
{
	my ($key) = @_;
	return $key->{own} // $plan{ $key->{project}{plan} };
}
$replay->limit($_, limit_of($key[$_])) foreach @random;

# One change, of random kind, and what it means to the keys.
sub change_limit
{
	my %before = map { $_ => literal(limit_of($key[$_])) } @random;
	my $limit = random_of(@limits);
	my $statement = random_of(
		sub {
			my $plan = random_of(sort keys %plan);
			$plan{$plan} = $limit;
			return sprintf q{UPDATE regpilot.plan SET requests_per_minute = %s WHERE name = '%s'}, literal($limit), $plan;
		},
		sub {
			my $project = random_of(@project);
			$project->{plan} = random_of(sort keys %plan);
			return "UPDATE regpilot.project SET plan = '$project->{plan}' WHERE id = '$project->{id}'";
		},
		sub {
			my $number = random_of(@random);
			$key[$number]{own} = $limit;
			return sprintf q{UPDATE regpilot.api_key SET requests_per_minute = %s WHERE id = '%s'}, literal($limit), $load->key_id($number);
		})->();
	my ($sent, $done) = $load->execute($statement);
	foreach my $number (@random)
	{
		my $new = limit_of($key[$number]);
		$replay->limit($number, $new, $sent, $done) if literal($new) ne $before{$number};
	}
}

# So many keys that each is used once in a while, and has lost its place in shared
# memory by then. They wrest it from each other, but must not from the others. A
# flush that comes late may leave one of them without.
my @crowd = $load->add_keys(q{
	SELECT k.key_id, k.key FROM regpilot.create_project('crowd', 'enterprise') p, generate_series(1, 3000) i,
		regpilot.create_key(p, 'crowd ' || i) k});
$replay->limit($_, undef) foreach @crowd;

my $evicted = 0;

sub count_evicted
{
	$evicted += $site->sql('SELECT evicted FROM regpilot.shared_memory_status()');
}

# Some of these begin with a count that is lost over them.
my %do = (
	terminate => sub {
		$load->execute(q{SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name = 'load' ORDER BY random() LIMIT 3) p});
	},
	client => sub {
		my $client = random_of($load->running);
		$load->kill_client($client);
		$load->start(%{ $client->{option} });
	},
	limit => \&change_limit,
	clock => sub { step_clock(random_of(@steps)) },
	restart => sub { count_evicted(); $replay->outage($load->restart) },
	stop => sub { count_evicted(); $replay->crash($load->stop_at_once) },
	backend => sub { count_evicted(); $replay->crash($load->kill_backend) },
	worker => sub { count_evicted(); $replay->crash($load->kill_worker) },
	postmaster => sub { count_evicted(); $replay->crash($load->kill_postmaster) },
);

# Two minutes and more, with short bursts and long ones.
$load->start(keys => [ $hot[3] ], batch => 64, burst => 8, pause => 120);
$load->start(keys => [ $hot[2] ], burst => 500, pause => 500);
$load->start(keys => [ $hot[2] ], burst => 50, pause => 80);
$load->start(keys => [ @hot[ 0, 1 ] ], burst => 50, pause => 80) for 1 .. 2;
$load->start(keys => [ random_of(@random) ], burst => 50, pause => 80) for 1 .. 2;
$load->start(keys => \@random, burst => 1000, pause => 1000);
$load->start(keys => \@random, burst => 50, pause => 80);
$load->start(keys => \@random, burst => 50, pause => 80, transaction => 30);
$load->start(keys => \@random, batch => 16, burst => 20, pause => 500);
$load->start(keys => \@crowd, burst => 20, pause => 300);

my $connections = $load->running;
my $start = now;
foreach my $due (sort { $a->{at} <=> $b->{at} }
	map { my $event = $_; map { { at => rand($seconds), event => $event } } 1 .. $events{$event} } sort keys %events)
{
	sleep max(0, $due->{at} - (now() - $start) / 1e6);
	note(sprintf '%5.1f s: %s', (now() - $start) / 1e6, $due->{event});
	$do{ $due->{event} }->();
}
sleep max(0, $seconds - (now() - $start) / 1e6);
$load->stop;

# --- judged

count_evicted();
my $asked = now;
$site->sql('SELECT regpilot.flush_usage()');
my %total = map { split /\|/ } split /\n/,
  $site->sql('SELECT key_id, sum(total_requests) FROM regpilot.key_usage GROUP BY key_id');
my $answered = now;
$replay->read($load);

note(sprintf 'in %.0f s: %s', (now() - $start) / 1e6, $replay->summary);
my @keys = (@hot, @random, @crowd);
note(sprintf '%d keys, %d connections, %d evictions, and these events: %s',
	scalar @keys, $connections, $evicted, join ', ', map { "$events{$_} $_" } sort keys %events);

# What a judgement finds wrong, of all keys.
sub findings
{
	my ($judge) = @_;
	return [ map { my $finding = $judge->($_); $finding ne '' ? "key $_: $finding" : () } @keys ];
}
my %may_lack_place = map { $_ => 1 } @crowd;
is_deeply(findings(sub { $replay->strange($_[0], $may_lack_place{ $_[0] } ? qw(ok unavailable) : qw(ok rate_limited)) }),
	[], 'each call is admitted or refused, or its connection is lost');
is_deeply(findings(sub { $replay->excess($_[0]) }), [], 'no window of 60 seconds holds more admissions than the limit');
is_deeply(findings(sub { $replay->denied($_[0]) }), [], 'no request is refused while there is a place');
is_deeply(findings(sub { $replay->wrong_total($_[0], $total{ $load->key_id($_[0]) } // 0, $asked, $answered) }),
	[], 'totals are the number of admissions');
is($site->sql(q{
	SELECT count(*) FROM regpilot.key_usage u
		LEFT JOIN (SELECT key_id, environment, sum(total_requests) AS sum FROM regpilot.usage_hourly GROUP BY 1, 2) h
		USING (key_id, environment)
	WHERE total_requests IS DISTINCT FROM sum}), 0, 'and so are those of all hours together, wherever the clock was');
cmp_ok($evicted, '>', 0, 'keys lost their place in shared memory');
cmp_ok($replay->count('rate_limited', $_), '>', 0, "a limit of $fixed[$_] was reached") foreach @hot;

done_testing();
