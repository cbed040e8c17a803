# A key guards a backend that knows nothing of RegPilot: nginx asks /auth (auth_request).

use strict;
use warnings;
use lib 't/lib';
use JSON::PP ();
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(
	web_server => 'nginx-auth',
	values => sub { return { BACKEND => $_[0]->start_upstream =~ s{^http://|/v1$}{}gr } });
my ($key_id, $key) = $site->create_key(environment => 'ci');
my ($other_id, $other) = $site->create_key;
my $wanted = 0;    # requests that the backend is to see

# A call to the backend, which does what a model of t/upstream.py does.
sub call
{
	my ($model, @headers) = @_;
	return $site->post('/some/where?x=%zz', { model => $model, padding => 'x' x 100_000 }, @headers);
}

sub calls
{
	return scalar grep { $_->{event} eq 'request' } -e $site->upstream_requests ? json_file($site->upstream_requests) : ();
}

sub refused
{
	my ($answer, $status, $body, $what) = @_;
	is($answer->{status}, $status, "$what: status");
	is($answer->{body}, $body, "$what: body") if !ref $body;
	like($answer->{body}, $body, "$what: body") if ref $body;
	like($answer->{headers}{'content-type'}, qr{^application/json\b}, "$what: JSON");
	like($answer->{headers}{'x-request-id'}, qr/^[0-9a-f]{32}$/, "$what: x-request-id");
	is($answer->{headers}{'www-authenticate'}, $status == 401 ? 'Bearer' : undef, "$what: WWW-Authenticate");
	is(calls(), $wanted, "$what: the backend sees nothing of it");
	return;
}

# --- who has a key gets through, and the key stays here

foreach my $header (@credential_headers)
{
	my $answer = call('ok', $header =~ /authorization/i ? "$header: Bearer $key" : "$header: $key",
		'X-RegPilot-Key-Id: forged', 'X-RegPilot-Project-Id: forged', 'X-RegPilot-Plan: forged', 'X_RegPilot_Key_Id: forged',
		'X-RegPilot-Environment: dev', 'Accept-Language: eo');
	$wanted++;
	is($answer->{status}, 200, "$header opens");
	is(text_of($answer), 'one two three four five', "$header: the backend's answer");
	my $request = $site->last_request;
	is($request->{path}, '/some/where?x=%zz', "$header: the path gets there");
	is(length $request->{body}{padding}, 100_000, "$header: the body gets there");
	my %seen = %{ $request->{headers} };
	is($seen{'x-regpilot-key-id'}, $key_id, "$header: the backend knows the key's id");
	is($seen{'x-regpilot-environment'}, 'ci', "$header: and environment");
	is($seen{'x-regpilot-plan'}, 'enterprise', "$header: and plan");
	is($seen{'x-regpilot-project-id'}, $site->{projects}{enterprise}, "$header: and project");
	is($seen{'accept-language'}, 'eo', "$header: and what else the client says");
	my $all = join "\n", map { "$_: $seen{$_}" } sort keys %seen;
	unlike($all, qr/\Q$key\E/, "$header: but not the key");
	unlike($all, qr/forged/, "$header: nor a forged identity");
}
call('ok', "X-API-Key: $other", 'X-RegPilot-Environment: prod');
$wanted++;
ok(!exists $site->last_request->{headers}{'x-regpilot-environment'}, 'a key without an environment: none is told');

# --- who has none does not

my ($revoked_id, $revoked) = $site->create_key;
$site->sql("SELECT regpilot.revoke_key('$revoked_id')");
my ($forbidden_id, $forbidden) = $site->create_key(permissions => ['logs:read']);
my ($limited_id, $limited) = $site->create_key(requests_per_minute => 2);
refused(call('ok'), 401, $body{missing}, 'no key');
refused(call('ok', 'X-API-Key: nobody'), 401, $body{invalid}, 'a wrong key');
refused(call('ok', "X-API-Key: $revoked"), 401, $body{revoked}, 'a revoked key');
refused(call('ok', "X-API-Key: $forbidden"), 403, $body{forbidden}, 'a key without the permission');
refused($site->get('/auth', 'X-API-Key: nobody'), 401, $body{invalid}, "RegPilot's own path is the backend's here");
is($site->get('/regpilot-auth', "X-API-Key: $key")->{status}, 404, 'the question itself cannot be asked from outside');

my $answer = call('ok', "X-API-Key: $limited");
is($answer->{headers}{'x-ratelimit-limit'}, 2, 'a key with a limit: x-ratelimit-limit');
is($answer->{headers}{'x-ratelimit-remaining'}, 1, 'a key with a limit: x-ratelimit-remaining');
is(call('ok', "X-API-Key: $limited")->{status}, 200, 'a key with a limit: up to it');
$wanted += 2;
foreach (1 .. 3)
{
	my $answer = call('ok', "X-API-Key: $limited");
	refused($answer, 429, qr/^\{"error":"Rate limit exceeded","retry_after":\d+,"limit":2,"window":"1 minute"\}$/,
		'beyond the limit');
	is($answer->{headers}{'retry-after'}, $answer->{json}{retry_after}, 'beyond the limit: Retry-After');
	is($answer->{headers}{'x-ratelimit-remaining'}, 0, 'beyond the limit: x-ratelimit-remaining');
}

# --- the backend's own errors are its own

my %own = (500 => 'internal: ', 429 => 'slow down', 400 => 'this model takes no pictures');
foreach my $status (sort keys %own)
{
	my $answer = call("error-$status", "X-API-Key: $key");
	$wanted++;
	is($answer->{status}, $status, "the backend says $status");
	is($answer->{json}{error}{message}, $own{$status}, "the backend says $status: in its words");
	ok(!exists $answer->{headers}{'retry-after'}, "the backend says $status: and nothing is added");
}
is($site->overview($key_id, 'total_requests'), 9, 'every request of the key was counted');

# --- in doubt nobody gets through

$site->node->stop('immediate');
$answer = call('ok', "X-API-Key: $key");
refused($answer, 503, '{"error":"API keys cannot be checked at the moment","code":"DATABASE_UNAVAILABLE"}', 'no database');
like($answer->{headers}{'retry-after'}, qr/^[1-9]\d*$/, 'no database: Retry-After');
$site->end_responder('TERM');
$answer = call('ok', "X-API-Key: $key");
refused($answer, 503, '{"error":"The gateway is out of reach","code":"GATEWAY_UNAVAILABLE"}', 'no responder');
is($answer->{headers}{'retry-after'}, 1, 'no responder: Retry-After');
$site->node->start;
$site->start_responder;
$site->wait_for_verdicts;
is(call('ok', "X-API-Key: $key")->{status}, 200, 'both are back');

is_deeply([ $site->logs_with($key) ], [], 'the key is in no log');

done_testing();
