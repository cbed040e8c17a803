# Real upstreams: relayed over verified TLS, failed over, and never trusted with
# more than they need.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $secret = 'upstream-secret-' . join '', map { chr(97 + int rand 26) } 1 .. 20;
my $site = RegPilot::Test->new(
	env => sub {
		my ($site) = @_;
		mkdir "$site->{dir}/secrets";
		PostgreSQL::Test::Utils::append_to_file("$site->{dir}/secrets/FILE_SECRET", "$secret-from-file\n");
		return {
			TEST_SECRET => $secret,
			REGPILOT_SECRETS_DIR => "$site->{dir}/secrets",
			REGPILOT_CA_FILE => $site->authority('ca'),
			REGPILOT_CONNECT_TIMEOUT => 1000,
			REGPILOT_UPSTREAM_TIMEOUT => 2000,
		};
	});
my ($key_id, $key) = $site->create_key;

my $plain = $site->start_upstream;
my $good = $site->start_upstream(tls => 'localhost');
my $untrusted = $site->start_upstream(tls => 'localhost', untrusted => 1);
my $misnamed = $site->start_upstream(tls => 'somewhere.example');

$site->add_upstream('plain', $plain, 'TEST_SECRET');
$site->add_upstream('good', $good, 'TEST_SECRET');
$site->add_upstream('untrusted', $untrusted, 'TEST_SECRET');
$site->add_upstream('misnamed', $misnamed, 'TEST_SECRET');
$site->add_upstream('file', $plain, 'FILE_SECRET');
$site->add_upstream('nosecret', $plain);
$site->add_upstream('missing', $plain, 'NO_SUCH_SECRET');
$site->add_upstream('closed', 'http://127.0.0.1:1/v1', 'TEST_SECRET');
$site->add_upstream('slash', "$plain/", 'TEST_SECRET');

# One that has failed is passed over for a while, so each of these is one by itself.
my @failing = qw(error-500 error-429 secret-401 garbage not-an-object cut redirect);
my @bad = qw(dies no-done silent-stream long-stream slow hang error-400);
$site->add_upstream("alone-$_", $plain, 'TEST_SECRET') foreach @failing;
$site->add_upstream("alone-$_", $good, 'TEST_SECRET') foreach @bad;
$site->add_routes(
	(map { [ "good-$_", 'good', $_ ] } qw(ok error-400 secret-400)),
	(map { [ "alone-$_", "alone-$_", $_ ] } @failing, @bad),
	(map { [ "$_-ok", $_, 'ok' ] } qw(untrusted misnamed file nosecret missing closed slash)),
	# the same, but the next one of the list works
	(map { ([ "second-$_", "alone-$_", $_, 1 ], [ "second-$_", 'good', 'ok', 2 ]) } @failing, 'error-400'),
	[ 'second-closed', 'closed', 'ok', 1 ], [ 'second-closed', 'good', 'ok', 2 ],
	[ 'second-untrusted', 'untrusted', 'ok', 1 ], [ 'second-untrusted', 'good', 'ok', 2 ],
	[ 'second-dies', 'plain', 'dies', 1 ], [ 'second-dies', 'good', 'ok', 2 ]);

my $object = JSON::PP::false;

# --- relayed over TLS

my $answer = $site->chat($key, model => 'good-ok', stream => $object, temperature => 0.5, quality => 'cheap',
	tools => [ { type => 'function' } ]);
is($answer->{status}, 200, 'HTTPS: status');
is(text_of($answer), 'one two three four five', 'HTTPS: the answer');
is($answer->{headers}{'x-regpilot-model'}, 'good/ok', 'HTTPS: x-regpilot-model');
ok(!exists $answer->{headers}{'x-upstream-header'}, "HTTPS: the upstream's own headers stay behind");
my $request = $site->last_request;
is($request->{path}, '/v1/chat/completions', 'upstream: path');
is($request->{headers}{authorization}, "Bearer $secret", "upstream: the secret's value as bearer");
like($request->{headers}{'content-type'}, qr{^application/json\b}, 'upstream: content type');
is_deeply(
	$request->{body},
	{
		messages => [ { role => 'user', content => 'test' } ],
		model => 'ok',
		stream => $object,
		temperature => 0.5,
		tools => [ { type => 'function' } ],
	},
	'upstream: the body, with model and stream set, quality removed and the rest as it came');

my $stream = $site->stream($key, model => 'good-ok');
is($stream->{headers}{'x-regpilot-model'}, 'good/ok', 'HTTPS stream: x-regpilot-model');
is(text_of($stream), 'one two three four five ', 'HTTPS stream: the text');
is((events($stream->{body}))[-1], '[DONE]', 'HTTPS stream: [DONE]');
my @words = grep { $_->[1] =~ /one|two|three|four|five/ } @{ $stream->{pieces} };
is(scalar @words, 5, 'HTTPS stream: each event by itself');
cmp_ok($words[-1][0] - $words[0][0], '>=', 0.9, 'HTTPS stream: as they came from the upstream');
ok($site->last_request->{body}{stream}, 'HTTPS stream: asked for as a stream');

# --- the client's credentials stay here

foreach my $header (@RegPilot::Test::credential_headers)
{
	my $value = $header =~ /authorization/i ? "Bearer $key" : $key;
	is($site->post('/v1/chat/completions', user_message(model => 'file-ok'), "$header: $value",
			'Cookie: session=1', 'X-RegPilot-Environment: ci')->{status}, 200, "called with $header");
	my %headers = %{ $site->last_request->{headers} };
	is($headers{authorization}, "Bearer $secret-from-file", "$header: the upstream gets its own secret, from a file");
	is_deeply([ grep { index($headers{$_}, $key) >= 0 } keys %headers ], [], "$header: and no key of ours");
	is_deeply([ grep { /^(x-|api-key|cookie|proxy-)/ } keys %headers ], [], "$header: and none of the client's headers");
}
is($site->chat($key, model => 'nosecret-ok', stream => $object)->{status}, 200, 'an upstream without a secret');
ok(!exists $site->last_request->{headers}{authorization}, 'gets none');
is($site->chat($key, model => 'slash-ok', stream => $object)->{status}, 200, 'a base URL that ends in a slash');
is($site->last_request->{path}, '/v1/chat/completions', 'makes the same path');

# --- failures

# How many requests the upstreams have got.
sub requests { return scalar grep { $_->{event} eq 'request' } json_file($site->upstream_requests) }

sub failed
{
	my ($answer, $status, $code, $what) = @_;
	is($answer->{status}, $status, "$what: status");
	is($answer->{json}{code}, $code, "$what: code");
	is($answer->{json}{request_id}, $answer->{headers}{'x-request-id'}, "$what: request id");
	is_deeply([ sort keys %{ $answer->{json} // {} } ], [qw(code error request_id)], "$what: shape");
	unlike(join("\n", %{ $answer->{headers} }) . $answer->{body}, qr/upstream-secret/, "$what: no secret");
	return;
}

my $requests = requests();
foreach my $upstream (qw(untrusted misnamed))
{
	foreach my $streamed (JSON::PP::true, $object)
	{
		failed($site->chat($key, model => "$upstream-ok", stream => $streamed),
			502, 'UPSTREAM_FAILED', "$upstream certificate, stream $streamed");
	}
}
is(requests(), $requests, 'no request was sent to a server that could not prove who it is');
failed($site->chat($key, model => 'closed-ok'), 502, 'UPSTREAM_FAILED', 'nobody listens');
failed($site->chat($key, model => 'missing-ok'), 502, 'UPSTREAM_FAILED', 'a secret that is not there');
foreach my $model (@failing)
{
	failed($site->chat($key, model => "alone-$model", stream => $object), 502, 'UPSTREAM_FAILED', $model);
	failed($site->chat($key, model => "alone-$model"), 502, 'UPSTREAM_FAILED', "$model, streamed");
}
failed($site->chat($key, model => 'alone-hang', stream => $object), 504, 'UPSTREAM_TIMEOUT', 'silence');
failed($site->chat($key, model => 'alone-hang'), 504, 'UPSTREAM_TIMEOUT', 'silence, streamed');
failed($site->chat($key, model => 'good-secret-400', stream => $object), 502, 'UPSTREAM_FAILED', 'a 400 that tells the secret');

# the client's own fault is passed on
foreach my $model (qw(good-error-400 second-error-400))
{
	$answer = $site->chat($key, model => $model, stream => $object);
	is($answer->{status}, 400, "$model: status is passed on");
	is($answer->{json}{error}{message}, 'this model takes no pictures', "$model: body is passed on");
}

# --- failover before the first byte

foreach my $model (@failing, qw(closed untrusted))
{
	$answer = $site->chat($key, model => "second-$model", stream => $object);
	is($answer->{status}, 200, "$model: the next upstream answers");
	is($answer->{headers}{'x-regpilot-model'}, 'good/ok', "$model: and is named");
}
$answer = $site->chat($key, model => 'second-error-500');
is(text_of($answer), 'one two three four five ', 'failover of a stream');

# --- streams that end too soon

foreach my $model (qw(second-dies alone-dies alone-no-done))
{
	$answer = $site->chat($key, model => $model);
	is($answer->{status}, 200, "$model: had begun");
	is($answer->{exit}, 0, "$model: ends in order for the client");
	my @events = events($answer->{body});
	like(text_of($answer), qr/^first /, "$model: what came is there, once");
	ok(ref $events[-1] && $events[-1]{error}, "$model: ends in an error event");
	unlike($answer->{body}, qr/\[DONE\]/, "$model: and not in [DONE]");
}
$answer = $site->chat($key, model => 'alone-silent-stream');
ok((events($answer->{body}))[-1]{error}, 'a stream that falls silent ends in an error event');

# --- a client that goes away

foreach my $model (qw(long-stream silent-stream slow hang))
{
	my $before = grep { $_->{event} eq 'client gone' } json_file($site->upstream_requests);
	my $start = time;
	my $answer = $site->curl('/api/ai/chat', '--max-time', '0.7', '--header', "X-API-Key: $key",
		'--json', JSON::PP::encode_json(user_message(model => "alone-$model")));
	is($answer->{exit}, 28, "$model: the client gave up");
	wait_until('the upstream to see it',
		sub { $before < grep { $_->{event} eq 'client gone' } json_file($site->upstream_requests) }, 10);
	cmp_ok(time - $start, '<', 2, "$model: the upstream call ends with it");
}

# --- accounts

sleep 0.5;
my ($total, $failed) = split /\|/, $site->overview($key_id, 'total_requests, failed_requests');
my $calls = () = grep { $_->{event} eq 'request' } json_file($site->upstream_requests);
cmp_ok($failed, '>', 20, 'failures are counted on the key');
cmp_ok($failed, '<', $total, 'and successes are not');
cmp_ok($site->sql("SELECT sum(prompt_tokens) FROM regpilot.key_usage WHERE key_id = '$key_id'"), '>=', 7 * 10,
	'tokens that the upstream reported are recorded');

# --- changes of the routing table, without a restart

$site->sql(q{UPDATE regpilot.route SET upstream = 'plain' WHERE alias = 'good-ok'});
$site->sql(qq{UPDATE regpilot.upstream SET base_url = '$good' WHERE name = 'nosecret'});
$site->add_routes([ 'late', 'nosecret', 'ok' ]);
is($site->chat($key, model => 'good-ok', stream => $object)->{headers}{'x-regpilot-model'}, 'plain/ok', 'a changed route');
is($site->chat($key, model => 'late', stream => $object)->{headers}{'x-regpilot-model'}, 'nosecret/ok', 'a new route');
$site->sql(q{DELETE FROM regpilot.route WHERE alias = '*'});
$site->add_routes;
$answer = $site->chat($key, model => 'nobody-knows');
is($answer->{status}, 404, 'a model without a route: status');
is($answer->{json}{code}, 'MODEL_NOT_FOUND', 'a model without a route: code');

is_deeply([ $site->logs_with($secret) ], [], "the upstream's secret is in no log");
is_deeply([ $site->logs_with('one two three') ], [], 'an answer is in no log');

done_testing();
