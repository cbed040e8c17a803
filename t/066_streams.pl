# Streams that take their time: the client is pinged, and nothing goes on for ever.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::FastCGI;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(time);

my $limit = 2.5;
my $site = RegPilot::Test->new(
	env => { TEST_SECRET => 'stream-secret', REGPILOT_PING_INTERVAL => 200, REGPILOT_MAX_DURATION => 1000 * $limit, REGPILOT_UPSTREAM_TIMEOUT => 60_000 });
my ($key_id, $key) = $site->create_key;
my $upstream = $site->start_upstream;
my $whole = JSON::PP::false;

my @models = qw(breaks silent-stream hang comments dribble commented-stream early-usage long-stream many-events large-event);
$site->add_upstream("up-$_", $upstream) foreach @models;
$site->sql(q{UPDATE regpilot.upstream SET secret_name = 'TEST_SECRET' WHERE name = 'up-breaks'});
$site->add_upstream('second', $upstream);
$site->sql(q{UPDATE regpilot.upstream SET timeout_ms = 1000 WHERE name = 'up-commented-stream'});
$site->add_routes((map { [ $_, "up-$_", $_, 1 ] } @models), [ 'hang', 'second', 'at-once', 2 ], [ 'hang-alone', 'up-hang', 'hang' ]);

# --- pings

my $stream = $site->stream($key, model => 'silent-stream');
my @pings = grep { $_->[1] =~ /^: ping\n\n/m } @{ $stream->{pieces} };
cmp_ok(scalar @pings, '>=', 3, 'silence: pings');
cmp_ok($pings[0][0], '<', $limit, 'as time goes by');
like($stream->{body}, qr/^data: [^\n]+"first "[^\n]+\n\n(?:: ping\n\n)+data: \{"error"/m, 'between the events');
is((events($stream->{body}))[-1]{error}{code}, 'UPSTREAM_TIMEOUT', 'until time is up');
cmp_ok($stream->{seconds}, '>=', $limit - 0.1, 'which is not before the limit');
cmp_ok($stream->{seconds}, '<', $limit + 10, 'nor long after');

my $answer = $site->chat($key, model => 'commented-stream');
is(text_of($answer), 'done ', "an upstream's comments keep its answer going");
is(scalar(() = $answer->{body} =~ /^: busy\n\n/mg), 20, 'and are passed on');
is((events($answer->{body}))[-1], '[DONE]', 'to the end');

$answer = $site->chat($key, model => 'large-event');
is(text_of($answer), 'x' x 300_000 . ' ', 'an event that is read in a thread of its own');
wait_until('the outcome', sub { $site->sql(q{SELECT count(*) FROM regpilot.request_log WHERE model = 'large-event'}) > 0 });
is($site->sql(q{SELECT prompt_tokens, completion_tokens FROM regpilot.request_log WHERE model = 'large-event'}),
	'7|1', 'tokens of its stream');

# --- whatever breaks off ends in an error, and nothing after it

foreach my $how (qw(reset chunk end event array length secret))
{
	$answer = $site->chat($key, model => 'breaks', user => $how);
	is($answer->{status}, 200, "breaks off by $how: had begun");
	is($answer->{exit}, 0, "breaks off by $how: ends in order for the client");
	is_deeply([ map { ref eq 'HASH' && $_->{error} ? $_->{error}{code} : text_of({ body => "data: " . JSON::PP::encode_json($_) . "\n\n" }) }
			events($answer->{body}) ],
		[ 'first ', 'UPSTREAM_FAILED' ], "breaks off by $how: with an error");
	unlike($answer->{body}, qr/stream-secret/, "breaks off by $how: no secret");
}

# --- limits

my @cases = (
	[ 504, 'hang', stream => $whole ],
	[ 504, 'hang-alone' ],
	[ 504, 'dribble' ],
	[ 504, 'comments', user => 'before' ],
	[ 200, 'comments', user => 'after' ]);
my $found = $site->in_parallel(
	scalar @cases,
	sub {
		my ($status, $model, @members) = @{ $cases[ $_[0] ] };
		my $start = time;
		my $answer = $site->curl('/api/ai/chat', '--header', "X-API-Key: $key",
			'--json', JSON::PP::encode_json(user_message(model => $model, @members)));
		my $seconds = time - $start;
		return {
			"$_[0]: status $answer->{status}" => 1,
			"$_[0]: code" => $answer->{body} =~ /"code":"UPSTREAM_TIMEOUT","request_id":"/ ? 1 : 0,
			"$_[0]: DONE or ping" => $answer->{body} =~ /DONE|ping/ ? 1 : 0,
			"$_[0]: in time" => $seconds >= $limit - 0.1 && $seconds < $limit + 10 ? 1 : 0,
		};
	});
foreach my $n (0 .. $#cases)
{
	my ($status, @request) = map { $_ // 'false' } @{ $cases[$n] };
	is_deeply({ map { $_ => $found->{$_} } grep { /^$n:/ } keys %$found },
		{ "$n: status $status" => 1, "$n: code" => 1, "$n: DONE or ping" => 0, "$n: in time" => 1 },
		"limit: @request: an error in time, neither end nor pings");
}
is(scalar(grep { ($_->{model} // '') eq 'at-once' } json_file($site->upstream_requests)), 0,
	'when time is up no other upstream is asked');

# a client that takes little at a time of what came at once
my $connection = RegPilot::FastCGI->new($site);
my $start = time;
$connection->send(
	request(1, { REQUEST_METHOD => 'POST', REQUEST_URI => '/api/ai/chat', CONTENT_TYPE => 'application/json', HTTP_X_API_KEY => $key },
		JSON::PP::encode_json(user_message(model => 'many-events'))));
wait_until(
	'the upstream to be left',
	sub {
		sysread $connection->{socket}, my $piece, 512;
		return grep { $_->{event} eq 'client gone' && $_->{model} eq 'many-events' } json_file($site->upstream_requests);
	});
my $seconds = time - $start;
cmp_ok($seconds, '>=', $limit - 0.1, 'limit: a client that reads slowly');
cmp_ok($seconds, '<', $limit + 10, 'limit: a client that reads slowly: in time');
$connection->close;

# --- the client goes away: recorded with the tokens that are known

foreach my $case ([ 'early-usage', '3|1' ], [ 'long-stream', '0|0' ])
{
	my ($model, $tokens) = @$case;
	my $start = time;
	my $gone = sub { grep { $_->{event} eq 'client gone' && $_->{model} eq $model } json_file($site->upstream_requests) };
	my $answer = $site->curl('/api/ai/chat', '--max-time', '0.7', '--header', "X-API-Key: $key",
		'--json', JSON::PP::encode_json(user_message(model => $model)));
	is($answer->{exit}, 28, "$model: the client gives up");
	wait_until('the upstream to see it', $gone, 10);
	cmp_ok(time - $start, '<', 5, "$model: the call ends with it");
	wait_until('the outcome', sub { $site->sql("SELECT count(*) FROM regpilot.request_log WHERE model = '$model'") > 0 });
	is($site->sql("SELECT status, prompt_tokens, completion_tokens FROM regpilot.request_log WHERE model = '$model'"),
		"499|$tokens", "$model: recorded as far as it is known");
}

done_testing();
