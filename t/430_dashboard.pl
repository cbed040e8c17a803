# The dashboard's sessions and API: who signs in is a role of the database, and may do there
# what it may do in the database, no more.

use strict;
use warnings;
use lib 't/lib';
use HTTP::Tiny;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $site = RegPilot::Test->new(env => { REGPILOT_MAX_SESSIONS => 5 });
my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my %password = (alice => $site->add_person('alice', admin => 1));

# Calls the dashboard's API as somebody (undef: nobody) does; gives status, JSON, headers.
my %cookie;
sub call
{
	my ($who, $method, $path, $body, %header) = @_;
	my $answer = HTTP::Tiny->new(timeout => 60)->request(
		$method,
		$site->url . "/dashboard/api/$path",
		{
			headers => {
				'X-RegPilot-Dashboard' => '1',
				(defined $who && $cookie{$who} ? (Cookie => "other=1; regpilot_session=$cookie{$who}") : ()),
				(defined $body ? ('Content-Type' => 'application/json') : ()),
				%header
			},
			(defined $body ? (content => ref $body ? $json->encode($body) : $body) : ())
		});
	$answer->{json} = eval { $json->decode($answer->{content}) };
	return $answer;
}

sub sign_in
{
	my ($who, $password) = @_;
	my $answer = call(undef, 'POST', 'session', { role => $who, password => $password // $password{$who} });
	($cookie{$who}) = ($answer->{headers}{'set-cookie'} // '') =~ /^regpilot_session=([0-9a-f]{64});/ if $answer->{status} == 200;
	return $answer;
}

# The status, and the code if there is one.
sub outcome
{
	my ($answer) = @_;
	return join ' ', $answer->{status}, ref $answer->{json} eq 'HASH' ? $answer->{json}{code} // () : ();
}

# Backends of the dashboard's sessions.
sub backends
{
	my ($role) = @_;
	return $site->sql("SELECT count(*) FROM pg_stat_activity WHERE usename = '$role' AND application_name = 'regpilot dashboard'");
}

# --- the page

my $page = HTTP::Tiny->new(max_redirect => 0)->get($site->url . '/dashboard');
is("$page->{status} $page->{headers}{location}", '308 /dashboard/', 'the way to the page');
foreach my $file ([ '', 'text/html; charset=utf-8' ], [ 'app.js', 'text/javascript; charset=utf-8' ], [ 'style.css', 'text/css; charset=utf-8' ], [ 'icon.svg', 'image/svg+xml' ])
{
	my ($name, $type) = @$file;
	my $answer = HTTP::Tiny->new->get($site->url . "/dashboard/$name");
	is("$answer->{status} $answer->{headers}{'content-type'}", "200 $type", "/dashboard/$name");
	is($answer->{headers}{'content-security-policy'},
		"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		"/dashboard/$name: what it may do");
	is($answer->{headers}{'x-content-type-options'}, 'nosniff', "/dashboard/$name: is what it says");
}
is(HTTP::Tiny->new->get($site->url . "/dashboard/$_")->{status}, 404, "/dashboard/$_: nothing")
  foreach qw(app.jsx ../healthz %2e%2e/healthz api2);

# --- signing in

is(outcome(call(undef, 'GET', 'session')), '401 NOT_SIGNED_IN', 'nobody is signed in');
is(outcome(call(undef, 'GET', 'projects')), '401 NOT_SIGNED_IN', 'and sees nothing');
my $answer = sign_in('alice');
is($answer->{status}, 200, 'an admin signs in');
is_deeply($answer->{json}, { role => 'alice', admin => JSON::PP::true }, 'and is told who it is');
like($answer->{headers}{'set-cookie'}, qr{^regpilot_session=[0-9a-f]{64}; Path=/dashboard; HttpOnly; SameSite=Strict$}, 'the cookie');
is_deeply(call('alice', 'GET', 'session')->{json}, { role => 'alice', admin => JSON::PP::true }, 'the session is there');
is(backends('alice'), 1, 'the session is a connection');
is(outcome(call('alice', 'GET', 'session', undef, 'X-RegPilot-Dashboard' => '')), '403 CROSS_SITE', 'what another site may have sent is refused');
is(outcome(call(undef, 'GET', 'projects', undef, Cookie => 'regpilot_session=' . substr $cookie{alice}, 0, 63)), '401 NOT_SIGNED_IN', 'half a cookie');
is(outcome(call(undef, 'GET', 'projects', undef, Cookie => 'regpilot_session=' . 'f' x 64)), '401 NOT_SIGNED_IN', 'a cookie made up');

foreach my $attempt (
	[ 'a wrong password', { role => 'alice', password => 'x' } ],
	[ 'no password', { role => 'alice', password => '' } ],
	[ 'no such role', { role => 'nobody', password => 'x' } ],
	[ 'a role that the server lets in without a password', { role => 'postgres', password => 'x' } ],
	[ 'conninfo for a role', { role => 'alice dbname=postgres password=x', password => 'x' } ],
	[ 'a NUL', "{\"role\":\"alice\\u0000\",\"password\":\"x\"}" ],
	[ 'no strings', { role => [], password => {} } ],
	[ 'a long role', { role => 'a' x 100, password => 'x' } ],
	[ 'a long password', { role => 'alice', password => 'x' x 5000 } ])
{
	my ($what, $body) = @$attempt;
	like(outcome(call(undef, 'POST', 'session', $body)), qr/^(401 SIGN_IN_FAILED|400 INVALID_JSON|422 INVALID_INPUT)$/, "$what: not signed in");
}
$site->sql(q{SET log_statement = none; CREATE ROLE stranger LOGIN PASSWORD 'strange' IN ROLE people});
is(outcome(sign_in('stranger', 'strange')), '401 SIGN_IN_FAILED', 'a role that is no member of ours');

# --- what an admin does

$answer = call('alice', 'POST', 'projects', { name => 'her project', plan => 'enterprise' });
is($answer->{status}, 200, 'an admin makes a project') or diag($answer->{content});
my $project = $answer->{json}{project_id};
is(outcome(call('alice', 'POST', 'projects', { name => 'her project', plan => 'free' })), '422 INVALID_INPUT', 'not twice');
is_deeply([ map { $_->{name} } @{ call('alice', 'GET', 'projects')->{json}{data} } ], ['her project'], 'it is listed');
is(call('alice', 'GET', "projects/$project")->{json}{plan}, 'enterprise', 'and shown');
ok((grep { $_->{name} eq 'enterprise' } @{ call('alice', 'GET', 'plans')->{json}{data} }), 'the plans');

$answer = call('alice', 'POST', "projects/$project/keys",
	{ name => 'a key', environment => 'prod', permissions => [ 'gateway:write', 'logs:read', 'analytics:read' ], requests_per_minute => 1000, expires_at => undef });
is($answer->{status}, 200, 'an admin makes a key') or diag($answer->{content});
my ($key_id, $key) = @{ $answer->{json} }{qw(key_id key)};
like($key, qr/^sk_prod_[0-9a-z]{32}$/, 'which is shown');
is($answer->{headers}{'cache-control'}, 'no-store', 'and not to be kept');
$answer = call('alice', 'GET', "keys/$key_id");
is_deeply([ @{ $answer->{json} }{qw(name environment status requests_per_minute rotated_to)} ], [ 'a key', 'prod', 'active', 1000, undef ], 'the key');
unlike($answer->{content}, qr/\Q$key\E/, 'without itself');
is($site->chat($key)->{status}, 200, 'it works');
wait_until('the call in the log', sub { @{ call('alice', 'GET', "projects/$project/logs")->{json}{data} } == 1 });
is(call('alice', 'GET', "projects/$project/logs")->{json}{data}[0]{key_id}, $key_id, 'its call is in the log');
is(call('alice', 'GET', "projects/$project/analytics?period=day")->{json}{totals}{requests}, 1, 'and is counted');
is_deeply([ map { $_->{name} } @{ call('alice', 'GET', "projects/$project/keys?search=KEY")->{json}{data} } ], ['a key'], 'keys are found');

$answer = call('alice', 'POST', "keys/$key_id/rotate", { overlap => '1 day' });
my ($new_id, $new_key) = @{ $answer->{json} }{qw(key_id key)};
is(call('alice', 'GET', "keys/$key_id")->{json}{rotated_to}, $new_id, 'the key is rotated');
is($site->chat($_)->{status}, 200, 'both work') foreach $key, $new_key;
is(outcome(call('alice', 'POST', "keys/$new_id/disable", {})), '200', 'one is disabled');
is($site->chat($new_key)->{status}, 401, 'and does not work');
is(outcome(call('alice', 'POST', "keys/$new_id/enable", {})), '200', 'and enabled again');
is($site->chat($new_key)->{status}, 200, 'and works');
is(outcome(call('alice', 'POST', "keys/$new_id/review", {})), '200', 'and reviewed');
is(outcome(call('alice', 'POST', "keys/$key_id/revoke", { reason => '<script>alert(1)</script>' })), '200', 'the old one is revoked');
is($site->chat($key)->{body}, $body{revoked}, 'and is refused');
is(outcome(call('alice', 'POST', "keys/$key_id/enable", {})), '422 INVALID_INPUT', 'for ever');
my %done;
$done{ $_->{action} }++ foreach @{ call('alice', 'GET', "projects/$project/audit")->{json}{data} };
cmp_ok(keys %done, '>=', 2, 'all that is in the audit trail') or diag(join ' ', %done);

foreach my $bad (
	[ GET => "keys/$project", undef, '404 NOT_FOUND' ],
	[ GET => 'keys/x', undef, '422 INVALID_INPUT' ],
	[ GET => "keys/$key_id%27", undef, '422 INVALID_INPUT' ],
	[ POST => "keys/$project/revoke", {}, '404 NOT_FOUND' ],
	[ POST => "keys/$new_id/rotate", { overlap => 'soon' }, '422 INVALID_INPUT' ],
	[ POST => "projects/$project/keys", {}, '422 INVALID_INPUT' ],
	[ POST => "projects/$project/keys", { name => 'x', permissions => ['admin'] }, '422 INVALID_INPUT' ],
	[ POST => "projects/$project/keys", { name => 7 }, '422 INVALID_INPUT' ],
	[ POST => "keys/$new_id/revoke", { reason => ['x'] }, '422 INVALID_INPUT' ],
	[ POST => "projects/$project/keys", '[]', '400 INVALID_JSON' ],
	[ POST => "projects/$project/keys", '{"name":"x"', '400 INVALID_JSON' ],
	[ GET => "projects/$project/logs?status=abc", undef, '422 INVALID_INPUT' ],
	[ GET => "projects/$project/logs?%zz=1", undef, '400 INVALID_PARAMETER' ],
	[ GET => "projects/$project/logs?model=%ff", undef, '400 INVALID_PARAMETER' ],
	[ GET => "projects/$project/logs?model=" . 'x' x 5000, undef, '400 INVALID_PARAMETER' ],
	[ DELETE => 'projects', undef, '405 METHOD_NOT_ALLOWED' ],
	[ GET => 'nothing', undef, '404 NOT_FOUND' ],
	[ GET => 'keys//', undef, '404 NOT_FOUND' ])
{
	my ($method, $path, $body, $expected) = @$bad;
	is(outcome(call('alice', $method, $path, $body)), $expected, substr "$method $path: $expected", 0, 90);
}
is(call('alice', 'GET', "projects/$project/keys")->{json}{total}, 2, 'of which nothing has come');

# --- what a member sees

my $other = $site->sql(q{SELECT regpilot.create_project('another project', 'free')});
my ($other_key) = $site->sql("SELECT key_id FROM regpilot.create_key('$other', 'another key')");
$password{bob} = $site->add_person('bob', projects => [$project]);
is_deeply(sign_in('bob')->{json}, { role => 'bob', admin => JSON::PP::false }, 'a member signs in');
is_deeply([ map { $_->{name} } @{ call('bob', 'GET', 'projects')->{json}{data} } ], ['her project'], 'sees its project and no other');
is(call('bob', 'GET', "projects/$project/keys")->{json}{total}, 2, 'its keys');
is(call('bob', 'GET', "projects/$project/analytics")->{status}, 200, 'and what they do');
is(outcome(call('bob', 'GET', "projects/$other$_")), '404 NOT_FOUND', "nothing of another: project$_") foreach '', qw(/keys /logs /analytics /audit);
is(outcome(call('bob', 'GET', "keys/$other_key")), '404 NOT_FOUND', 'nothing of another: key');
my $before = $site->sql('SELECT count(*), max(id) FROM regpilot.audit_log');
foreach my $attempt (
	[ 'projects', { name => 'x' } ],
	[ "projects/$project/keys", { name => 'x' } ],
	(map { [ "keys/$new_id/$_", {} ], [ "keys/$other_key/$_", {} ] } qw(rotate disable enable review revoke)))
{
	is(outcome(call('bob', 'POST', @$attempt)), '403 FORBIDDEN', "a member changes nothing: $attempt->[0]" =~ s/[0-9a-f-]{36}/.../r);
}
is($site->sql('SELECT count(*), max(id) FROM regpilot.audit_log'), $before, 'nothing has changed');
is($site->chat($new_key)->{status}, 200, 'the key works');

# --- keys

my ($plain_id, $plain) = $site->create_key(permissions => ['gateway:write']);
is($site->get('/api/logs', "X-API-Key: $plain")->{body}, $body{forbidden}, 'a key that may not read logs');
is($site->get('/api/analytics', "X-API-Key: $plain")->{body}, $body{forbidden}, 'nor analytics');
$answer = $site->get('/api/logs?limit=2', "X-API-Key: $new_key");
is($answer->{status}, 200, 'a key that may') or diag($answer->{body});
is_deeply({ map { $_->{key_id} => 1 } @{ $answer->{json}{data} } }, { $new_id => 1 }, 'the newest');
is(scalar @{ $site->get("/api/logs?key_id=$key_id", "X-API-Key: $new_key")->{json}{data} }, 2, 'another key of its project');
wait_until('all calls to be counted', sub { $site->get('/api/analytics?period=week', "X-API-Key: $new_key")->{json}{totals}{requests} >= 5 });
pass('analytics');
foreach my $path ('/api/logs?limit=0', '/api/logs?limit=1001', '/api/logs?cursor=x', '/api/logs?nothing=1', '/api/analytics?period=year', '/api/logs?from=then')
{
	$answer = $site->get($path, "X-API-Key: $new_key");
	is("$answer->{status} $answer->{json}{code}", '400 INVALID_PARAMETER', "$path: refused");
}
is(outcome(call(undef, 'GET', 'projects', undef, 'X-API-Key' => $new_key)), '403 FORBIDDEN', 'a key opens nothing of the dashboard');

# --- many at once, in one session

my $seen = $site->in_parallel(12, sub { my %count; $count{ call('alice', 'GET', "projects/$project")->{status} }++ foreach 1 .. 5; return \%count });
is_deeply($seen, { 200 => 60 }, 'calls side by side');

# --- the end of a session

is(call('bob', 'DELETE', 'session')->{status}, 204, 'one signs out');
wait_until('its connection to end', sub { backends('bob') == 0 });
is(outcome(call('bob', 'GET', 'projects')), '401 NOT_SIGNED_IN', 'and is out');
is(call('alice', 'GET', 'projects')->{status}, 200, 'the other is not');
$site->node->restart;
$site->wait_for_verdicts;
is(outcome(call('alice', 'GET', 'projects')), '401 NOT_SIGNED_IN', 'a session ends with its connection');
is(sign_in('alice')->{status}, 200, 'and another one begins');
$site->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'alice'});
is(outcome(call('alice', 'GET', 'projects')), '401 NOT_SIGNED_IN', 'the same when an admin ends it');

# --- not too many, and not for ever

is(sign_in('alice')->{status}, 200, "session $_") foreach 1 .. 5;
is(outcome(sign_in('alice')), '503 TOO_MANY_SESSIONS', 'no more than there may be');
is(call('alice', 'DELETE', 'session')->{status}, 204, 'one ends');
is(sign_in('alice')->{status}, 200, 'and another one begins');
is($site->end_responder('TERM'), 0, 'the responder ends');
wait_until('all sessions to end', sub { backends('alice') == 0 });
$site->{env}{REGPILOT_SESSION_IDLE} = 2000;
$site->start_responder;
$site->wait_for_verdicts;
is(sign_in('alice')->{status}, 200, 'a session');
wait_until('an idle session to end', sub { backends('alice') == 0 }, 20);
is(outcome(call('alice', 'GET', 'projects')), '401 NOT_SIGNED_IN', 'it is over');

# --- guessing

my %outcomes;
$outcomes{ outcome($answer = sign_in('bob', "guess $_")) }++ foreach 1 .. 6;
is_deeply([ sort keys %outcomes ], [ '401 SIGN_IN_FAILED', '429 SIGN_IN_THROTTLED' ], 'who guesses has to wait') or diag(explain \%outcomes);
like($answer->{headers}{'retry-after'}, qr/^[1-9]\d*$/, 'and is told how long');
is(sign_in('alice')->{status}, 200, 'others need not');
my $end = time + 30;
wait_until('the wait to be over', sub { sleep 0.5; sign_in('bob')->{status} == 200 }, 60);
pass('and then the right password does');

# --- secrets

foreach my $secret (values %password, values %cookie, $key, $new_key, 'guess 1')
{
	is_deeply([ $site->logs_with($secret) ], [], 'no log has a password, a cookie or a key') or diag($secret);
}
is($site->end_responder('TERM'), 0, 'the responder ends');

done_testing();
