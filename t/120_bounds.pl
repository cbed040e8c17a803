# Shared memory is bounded: slots are evicted when nothing is lost by it, and where
# none can be, a key cannot be judged and no request passes unlimited.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(conf => <<~CONF);
	regpilot.max_keys = 1
	regpilot.flush_interval = 50ms
	CONF

# Keys of two projects: the texts 'free 1' to 'free 2000', and 'enterprise 1' ...
foreach my $plan (qw(free enterprise))
{
	$site->sql("SELECT regpilot.create_project('bounds $plan', '$plan')");
	$site->sql(<<~SQL);
		INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions)
		SELECT p.id, '$plan ' || i, 'sk_...', sha256(('$plan ' || i)::bytea), '{gateway:write}'
		FROM regpilot.project p, generate_series(1, 2000) i WHERE p.name = 'bounds $plan'
		SQL
}

# Authorises those keys; returns how many got each verdict.
sub verdicts
{
	my ($keys) = @_;
	return map { split /\|/ } split /\n/, $site->sql(<<~SQL);
		SELECT verdict, count(*)
		FROM (SELECT (authorization_).verdict
			FROM (SELECT regpilot.authorize(key::regpilot.secret) AS authorization_ FROM ($keys) k (key) OFFSET 0) a) b
		GROUP BY verdict
		SQL
}

sub total
{
	my ($plan) = @_;
	$site->sql('SELECT regpilot.flush_usage()');
	return $site->sql("SELECT sum(total_requests) FROM regpilot.key_overview WHERE project = 'bounds $plan'");
}

# more keys than slots, from many sessions, while counts are flushed all the time
my $sum = $site->in_parallel(
	8,
	sub {
		my %sum;
		foreach my $round (1 .. 5)
		{
			my %count = verdicts(q{SELECT 'enterprise ' || (1 + i * 7919 % 2000) FROM generate_series(1, 4000) i});
			$sum{$_} += $count{$_} foreach keys %count;
		}
		return \%sum;
	});
is($sum->{ok} + ($sum->{unavailable} // 0), 8 * 5 * 4000, 'each request has one of two verdicts');
cmp_ok($sum->{ok}, '>', 2000, 'slots are used over and over');
is(total('enterprise'), $sum->{ok}, 'and what was admitted in them is counted exactly');

# A key is looked for first in the slot that was its own. What is recorded of others
# takes that slot and leaves no hint of it, so the one of the first key stays.
sub total_of_first
{
	$site->sql('SELECT regpilot.flush_usage()');
	return $site->sql(q{SELECT total_requests FROM regpilot.key_overview WHERE name = 'enterprise 1'});
}
$site->sql(q{SELECT FROM regpilot.authorize('enterprise 1')});
my $first_total = total_of_first();
for (my $i = 2; $i <= 2000; $i += 100)
{
	$site->sql(sprintf <<~SQL, $i, $i + 99);
		SELECT regpilot.record_many(array_agg(id), array_agg('other'::text), array_agg(500), array_agg(1),
			array_agg('model'::text), array_agg(0::bigint), array_agg(0::bigint))
		FROM regpilot.api_key WHERE name IN (SELECT 'enterprise ' || i FROM generate_series(%d, %d) i)
		SQL
	$site->sql('SELECT regpilot.flush_usage()');
}
my %again = verdicts(q{SELECT 'enterprise 1' FROM generate_series(1, 10)});
is($again{ok}, 10, 'a key whose slot another has taken gets a new one');
is(total_of_first() - $first_total, 10, 'and is counted there');

# a window that still binds holds its slot
my %first = verdicts(q{SELECT 'free ' || i FROM generate_series(1, 2000) i});
cmp_ok($first{ok}, '>', 0, 'some limited keys find a slot');
cmp_ok($first{unavailable}, '>', 0, 'the others cannot be judged');
is($first{ok} + $first{unavailable}, 2000, 'and none passes by another way');
is(total('free'), $first{ok}, 'the admitted ones are counted');

my %more = verdicts(q{SELECT 'free ' || i FROM generate_series(1, 2000) i, generate_series(1, 20)});
is(($more{ok} // 0) + $first{ok}, 10 * $first{ok}, 'each window admits ten and no more');
is($more{rate_limited}, 11 * $first{ok}, 'and refuses the rest');
is($more{unavailable}, 20 * $first{unavailable}, 'keys without a slot stay unavailable, however often they ask');

# over HTTP: our own fault, so neither a 401 nor a 429
my ($left_out) = map { /(\d+)/ } $site->sql(<<~SQL);
	SELECT min(name) FROM regpilot.key_overview WHERE project = 'bounds free' AND total_requests = 0
	SQL
my $answer = $site->get('/api/auth/verify', "X-API-Key: free $left_out");
is($answer->{status}, 503, 'a key that cannot be judged gets 503');
like($answer->{headers}{'retry-after'}, qr/^\d+$/, 'and is told when to try again');

done_testing();
