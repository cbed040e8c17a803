# The main job: a key issued in SQL opens a chat call, streamed or not.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new;
my ($key_id, $key) = $site->create_key(environment => 'dev');
my ($limited_id, $limited) = $site->create_key(plan => 'startup');

# the call of the documentation
my $answer = $site->chat($key);
is($answer->{status}, 200, 'chat: status');
like($answer->{headers}{'content-type'}, qr{^text/event-stream\b}, 'chat: an event stream');
is($answer->{headers}{'cache-control'}, 'no-cache', 'chat: not to be cached');
is($answer->{headers}{'x-regpilot-model'}, 'builtin/echo', 'chat: x-regpilot-model');
like($answer->{headers}{'x-request-id'}, qr/^[0-9a-f]{32}$/, 'chat: x-request-id');
ok(!exists $answer->{headers}{'x-ratelimit-limit'}, 'chat: no limit, no rate limit headers');
my @events = events($answer->{body});
is(pop @events, '[DONE]', 'chat: ends in [DONE]');
is($_->{object}, 'chat.completion.chunk', 'chat: a chunk') foreach @events;
is(text_of($answer), 'test', 'chat: the echo');

# chunks arrive one by one
my $words = join ' ', map { "word$_" } 1 .. 10;
my $stream = $site->stream($key, messages => [ { role => 'user', content => $words } ]);
is($stream->{status}, 200, 'stream: status');
is(text_of($stream), $words, 'stream: the text is whole');
my @texts = grep { $_->[1] =~ /word/ } @{ $stream->{pieces} };
is(scalar @texts, 10, 'stream: ten words came in ten pieces');
cmp_ok($texts[-1][0] - $texts[0][0], '>=', 0.1, 'stream: over a time, not at once');

# one object
$answer = $site->chat($key, stream => JSON::PP::false);
is($answer->{status}, 200, 'not streamed: status');
like($answer->{headers}{'content-type'}, qr{^application/json\b}, 'not streamed: JSON');
is($answer->{headers}{'x-regpilot-model'}, 'builtin/echo', 'not streamed: x-regpilot-model');
is($answer->{json}{object}, 'chat.completion', 'not streamed: one object');
is(text_of($answer), 'test', 'not streamed: the echo');
is($answer->{json}{choices}[0]{finish_reason}, 'stop', 'not streamed: finished');
is_deeply(
	$answer->{json}{usage},
	{ prompt_tokens => 1, completion_tokens => 1, total_tokens => 2 },
	'not streamed: usage');

# the OpenAI-compatible way in
$answer = $site->post('/v1/chat/completions', user_message(), "Authorization: Bearer $key");
is($answer->{status}, 200, 'v1: status');
is($answer->{json}{object}, 'chat.completion', 'v1: not streamed by default');
$answer = $site->post('/v1/chat/completions', user_message(stream => JSON::PP::true), "Authorization: Bearer $key");
like($answer->{headers}{'content-type'}, qr{^text/event-stream\b}, 'v1: streamed on demand');
is((events($answer->{body}))[-1], '[DONE]', 'v1: ends in [DONE]');

# what a chat may hold beside
foreach my $member (
	[ quality => 'cheap' ],
	[ quality => 'balanced' ],
	[ quality => 'frontier' ],
	[ temperature => 0 ],
	[ temperature => 2 ],
	[ temperature => 0.5 ],
	[ model => 'any-name' ],
	[ unknown_member => { a => [ 1, undef ] } ])
{
	is($site->chat($key, @$member)->{status}, 200, "a chat with $member->[0]");
}
my $odd = "na\x{ef}ve \x{1F600} \"q\" \\ \n end";
is(text_of($site->chat($key, messages => [ { role => 'user', content => $odd } ])),
	$odd, 'text that JSON must escape comes back as it was');

# without a key
foreach my $path ('/api/ai/chat', '/v1/chat/completions')
{
	$answer = $site->post($path, user_message());
	is($answer->{status}, 401, "$path without a key: 401");
	is($answer->{body}, $body{missing}, "$path without a key: body");
	like($answer->{headers}{'content-type'}, qr{^application/json\b}, "$path without a key: JSON");
	like($answer->{headers}{'x-request-id'}, qr/^[0-9a-f]{32}$/, "$path without a key: x-request-id");
}

# who am I
$answer = $site->get('/api/auth/verify', "X-API-Key: $key");
is($answer->{status}, 200, 'verify: status');
is_deeply(
	$answer->{json},
	{
		valid => JSON::PP::true,
		project_id => $site->sql("SELECT id FROM regpilot.project WHERE plan = 'enterprise'"),
		project => 'project enterprise',
		plan => 'enterprise',
		key_id => $key_id,
		name => 'key 1',
		hint => $site->sql("SELECT hint FROM regpilot.api_key WHERE id = '$key_id'"),
		environment => 'dev',
		permissions => [ 'gateway:read', 'gateway:write', 'logs:read', 'analytics:read' ],
		limits => { requests_per_minute => undef, remaining => undef, reset => undef },
	},
	'verify: body without a limit');

$answer = $site->get('/api/auth/verify', "X-API-Key: $limited");
my $reset = $answer->{headers}{'x-ratelimit-reset'};
is($answer->{json}{environment}, undef, 'verify: a key without an environment');
is($answer->{headers}{'x-ratelimit-limit'}, 100, 'verify: x-ratelimit-limit');
is($answer->{headers}{'x-ratelimit-remaining'}, 99, 'verify: x-ratelimit-remaining');
cmp_ok(abs($reset - time - 60), '<=', 2, 'verify: x-ratelimit-reset, a minute ahead');
is_deeply(
	$answer->{json}{limits},
	{ requests_per_minute => 100, remaining => 99, reset => $reset },
	'verify: limits agree with the headers');

$answer = $site->chat($limited);
is($answer->{headers}{'x-ratelimit-remaining'}, 98, 'a stream carries the rate limit headers');
is($answer->{headers}{'x-ratelimit-limit'}, 100, 'a stream carries the limit');

$answer = $site->get('/healthz');
is($answer->{status}, 200, 'healthz: status');
is_deeply($answer->{json}, { status => 'ok' }, 'healthz: body');

# request ids are ours, and each its own
my @ids = map { $site->get('/api/auth/verify', "X-API-Key: $key", 'X-Request-Id: mine')->{headers}{'x-request-id'} } 1 .. 2;
like($ids[0], qr/^[0-9a-f]{32}$/, "a client's request id is not taken");
isnt($ids[0], $ids[1], 'request ids differ');

# the environment that a request counts under
$site->get('/api/auth/verify', "X-API-Key: $key", "X-RegPilot-Environment: $_") foreach qw(ci nowhere);
is($site->overview($key_id, 'active_environments'), '{ci,dev,other}', 'requests count under the environment they name');
is($site->overview($limited_id, 'total_requests, failed_requests'), '2|0', 'totals of the limited key');

done_testing();
