# A change of a key that returned from COMMIT is known to every request that begins
# after it, and none is refused before: 1,000 keys, one after the other, each in
# use by eight connections while it is revoked, disabled, expired, deleted, or its
# limit is lowered.
#
# REGPILOT_TEST_SEED repeats the order, REGPILOT_TEST_CHANGES says how many there
# are.

use strict;
use warnings;
use lib 't/lib';
use List::Util qw(shuffle);
use RegPilot::Load;
use RegPilot::Replay;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep);

my $seed = $ENV{REGPILOT_TEST_SEED} // int(rand(2**31));
my $changes = $ENV{REGPILOT_TEST_CHANGES} // 1000;
srand($seed);
note("REGPILOT_TEST_SEED=$seed");

my $site = RegPilot::Test->new(responder => 0, conf => $load_conf);
my $load = RegPilot::Load->new($site);
my $replay = RegPilot::Replay->new(flush_interval => 1_000_000);

# What is done to a key, how many keys of a hundred, and the verdict from then on.
# %1$s is the key's id, %2$s the name of its plan, which is its own.
my %kinds = (
	revoke => [ 30, 'revoked', q{SELECT regpilot.revoke_key('%1$s')} ],
	prepared => [ 10, 'revoked', q{EXECUTE revoke('%1$s')} ],
	transaction => [ 10, 'revoked', q{BEGIN; SELECT regpilot.revoke_key('%1$s'); COMMIT} ],
	update => [ 10, 'revoked', q{UPDATE regpilot.api_key SET revoked_at = now() WHERE id = '%1$s'} ],
	disable => [ 10, 'inactive', q{SELECT regpilot.disable_key('%1$s')} ],
	expire => [ 10, 'expired', q{UPDATE regpilot.api_key SET expires_at = now() WHERE id = '%1$s'} ],
	delete => [ 5, 'invalid', q{DELETE FROM regpilot.api_key WHERE id = '%1$s'} ],
	limit => [ 5, 'rate_limited', q{UPDATE regpilot.api_key SET requests_per_minute = 1 WHERE id = '%1$s'} ],
	plan => [ 5, 'rate_limited', q{UPDATE regpilot.plan SET requests_per_minute = 1 WHERE name = '%2$s'} ],
	project => [ 5, 'rate_limited', q{UPDATE regpilot.project SET plan = 'one' WHERE plan = '%2$s'} ],
);

# Each in a project and a plan of its own, in which it meets a limit that it does
# not reach.
$site->sql(<<~SQL);
	INSERT INTO regpilot.plan VALUES ('one', 1);
	INSERT INTO regpilot.plan SELECT 'plan-' || i, 1000000 FROM generate_series(0, $changes - 1) i;
	SQL
my @numbers = $load->add_keys(qq{
	SELECT k.key_id, k.key FROM generate_series(0, $changes - 1) i, regpilot.create_project('project ' || i, 'plan-' || i) p,
		regpilot.create_key(p, 'key') k ORDER BY i});

# They hear of what is refused, ten times, and go on to the next key. They pause
# now and then, or we could not read their logs as fast as they write them.
my @common = (keys => \@numbers, refusals => 10, burst => 10, pause => 2);
$load->start(@common) for 1 .. 4;
$load->start(@common, transaction => 50) for 1 .. 2;
$load->start(@common, batch => 8);
$load->start(@common, batch => 8, transaction => 50);
my @clients = $load->clients;

# Waits until all of them have been admitted with that key; false if one is not,
# since it still is with another. A client asks faster than wait_until() looks.
my %admitted;    # the last key that each was admitted with

sub wait_for_clients
{
	my ($number) = @_;
	my $patience = now + 20e6;
	foreach my $client (@clients)
	{
		while (1)
		{
			$load->read_log(
				$client,
				sub {
					$replay->add(@_);
					$admitted{$client} = $_[0] if $_[3] eq 'ok';
				});
			last if ($admitted{$client} // -1) == $number;
			return 0 if now > $patience;
			sleep 0.001;
		}
	}
	return 1;
}

# By sessions that take turns.
my @sessions = map { "session $_" } 1 .. 3;
$load->execute('PREPARE revoke(uuid) AS SELECT regpilot.revoke_key($1)', $_) foreach @sessions;

my @kinds = shuffle map { my $kind = $_; ($kind) x ($kinds{$kind}[0] * $changes / 100) } sort keys %kinds;
my @done;
foreach my $number (@numbers)
{
	wait_for_clients($number) or last;
	sleep rand 0.005;
	my $statement = sprintf $kinds{ $kinds[$number] }[2], $load->key_id($number), "plan-$number";
	$done[$number] = [ $load->execute($statement, $sessions[ rand @sessions ]) ];
}
is(@done, $changes, 'changes, each of a key that all clients are admitted with');
$load->stop if @done < $changes;
$load->wait_for($_) foreach $load->running;
$replay->read($load);

note($replay->summary);
foreach my $kind (sort keys %kinds)
{
	my @findings = map {
		my $finding = $replay->misjudged($_, 'ok', $kinds{$kind}[1], @{ $done[$_] });
		$finding ne '' ? "key $_: $finding" : ()
	} grep { $kinds[$_] eq $kind } 0 .. $#done;
	is_deeply(\@findings, [], "$kind, $kinds{$kind}[0] of 100: all requests before are admitted, all after are $kinds{$kind}[1]");
}

done_testing();
