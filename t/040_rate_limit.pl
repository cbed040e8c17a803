# A limit of N admits N a minute, says when to come again, and keeps its word.

use strict;
use warnings;
use lib 't/lib';
use HTTP::Tiny;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $site = RegPilot::Test->new;

# a free plan: ten, and no more
my ($key_id, $key) = $site->create_key(plan => 'free');
my $start = time;
foreach my $n (1 .. 10)
{
	my $answer = $site->chat($key);
	is($answer->{status}, 200, "request $n passes");
	is($answer->{headers}{'x-ratelimit-limit'}, 10, "request $n: limit");
	is($answer->{headers}{'x-ratelimit-remaining'}, 10 - $n, "request $n: remaining");
}
my $answer = $site->chat($key);
is($answer->{status}, 429, 'request 11 is refused');
my $wait = $answer->{headers}{'retry-after'};
is($answer->{body}, qq({"error":"Rate limit exceeded","retry_after":$wait,"limit":10,"window":"1 minute"}),
	'request 11: the body agrees with Retry-After');
cmp_ok($wait, '>=', 1, 'request 11: Retry-After is ahead');
cmp_ok($wait, '<=', 61, 'request 11: and within the window');
is($answer->{headers}{'x-ratelimit-remaining'}, 0, 'request 11: nothing remains');
cmp_ok(abs($answer->{headers}{'x-ratelimit-reset'} - time - $wait), '<=', 2, 'request 11: x-ratelimit-reset agrees');

my $retry_at = time + $wait;

# by then: many at once on one key admit exactly the limit
my (undef, $shared) = $site->create_key(plan => 'startup');
my $begin = time;
my $statuses = $site->in_parallel(
	8,
	sub {
		my $http = HTTP::Tiny->new;
		my %count;
		$count{ $http->get($site->url . '/api/auth/verify', { headers => { 'X-API-Key' => $shared } })->{status} }++
		  for 1 .. 50;
		return \%count;
	});
cmp_ok(time - $begin, '<', 55, 'all of it within one window');
is_deeply($statuses, { 200 => 100, 429 => 300 }, 'of 400 calls by 8 clients a limit of 100 admits 100');

# a key's own limit goes before the plan's
my (undef, $own) = $site->create_key(plan => 'enterprise', requests_per_minute => 3);
is(join(' ', map { $site->chat($own)->{status} } 1 .. 4), '200 200 200 429', "a key's own limit");

# keys do not share a window
my (undef, $other) = $site->create_key(plan => 'free');
is($site->chat($other)->{headers}{'x-ratelimit-remaining'}, 9, 'another key of the project has a window of its own');

# refused requests took no place, so the place frees when it was said to
sleep($retry_at - time) if $retry_at > time;
is($site->chat($key)->{status}, 200, 'after Retry-After the call passes');
is($site->overview($key_id, 'total_requests'), 11, 'eleven requests were admitted');

done_testing();
