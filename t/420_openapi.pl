# The OpenAPI document against the running responder: each operation in success and in each of its
# errors. What is compared is in t/clients/openapi.mjs, which is given the answers of this test.

use strict;
use warnings;
use lib 't/lib';
use Encode ();
use IPC::Run ();
use JSON::PP ();
use PostgreSQL::Test::Utils;
use RegPilot::Client;
use RegPilot::FastCGI;
use RegPilot::Test;
use Test::More;

# Addresses that the responder does not have yet, each with all that is below it.
my @later = ();

# What is documented and no test of an operation gets, as patterns of "METHOD /path status what".
my @unprovoked = (
	' 500 INTERNAL_ERROR$',    # out of memory
	'^GET /(readyz|metrics) 403 FORBIDDEN$',    # asked from another machine
);
push @unprovoked,
  ' 503 TOO_MANY_SESSIONS$',    # how many there may be is not said here
  '^(?!POST /dashboard/api/session ).* /dashboard/.* 503 DATABASE_UNAVAILABLE$'    # a session ends with its connection
  unless grep { $_ eq '/dashboard' } @later;

my $json = JSON::PP->new->utf8->canonical;
my $document = $json->decode(slurp_file('fcgi/openapi.json'));
my ($false, $true) = (JSON::PP::false, JSON::PP::true);

my $site = RegPilot::Test->new(env => { REGPILOT_MAX_STREAMS => 2, REGPILOT_MAX_BODY => 100_000 });
run_client($site, {}, 'node', 't/clients/openapi.mjs', 'sound');

# --- the operations

my %operation;    # "METHOD /path" => operation
foreach my $path (keys %{ $document->{paths} })
{
	my $item = $document->{paths}{$path};
	$operation{ uc($_) . " $path" } = { %{ $item->{$_} }, method => uc, path => $path }
	  foreach grep { /^(get|put|post|delete|options|head|patch)$/ } keys %$item;
}

sub is_later
{
	my ($path) = @_;
	return scalar grep { $path eq $_ || $path =~ m{^\Q$_\E/} } @later;
}

sub operations
{
	my ($wanted) = @_;
	return grep { !is_later($_->{path}) && $wanted->($_) } map { $operation{$_} } sort keys %operation;
}

my @keyed = operations(sub { !$_[0]{security} });

# --- calls, and what came of them

my $answers = "$site->{dir}/answers";
append_to_file($answers, '');

# Calls an operation: url => if not its path, headers => [...], sent => body, limited => whether the
# limit of its key is told, response => that of the document, if not one of the operation.
sub call
{
	my ($method, $path, %option) = @_;
	my $url = $option{url} // $path;
	my @arguments = $method eq 'HEAD' ? '--head' : ('--request', $method);
	my $sent = $option{sent};
	if (defined $sent)
	{
		$sent = $json->encode($sent) if ref $sent;
		my $file = "$site->{dir}/sent";
		unlink $file;
		append_to_file($file, $sent);
		push @arguments, '--data-binary', "\@$file", '--header', 'Content-Type: ' . ($option{type} // 'application/json');
	}
	push @arguments, '--header', $_ foreach @{ $option{headers} // [] };
	my $answer = $site->curl($url, @arguments);
	note_answer($method, $path, $answer, %option, url => $url, sent => $sent);
	return $answer;
}

sub note_answer
{
	my ($method, $path, $answer, %option) = @_;
	my %record = (
		method => $method, path => $path, url => $option{url},
		status => 0 + $answer->{status}, headers => $answer->{headers},
		body => Encode::decode('UTF-8', $answer->{body}),
	);
	$record{sent} = Encode::decode('UTF-8', $option{sent}) if defined $option{sent};
	$record{limited} = $option{limited} ? $true : $false if defined $option{limited};
	$record{response} = "#/components/responses/$option{response}" if $option{response};
	append_to_file($answers, $json->encode(\%record) . "\n");
	return;
}

# A request that each operation with a key takes.
my $message = { messages => [ { role => 'user', content => 'test' } ], model => 'chat' };
my %good = (
	'POST /api/ai/chat' => { sent => $message },
	'POST /v1/chat/completions' => { sent => $message },
	'POST /v1/embeddings' => { sent => { input => 'test', model => 'embed' } },
	'GET /v1/models' => {},
	'GET /v1/models/{id}' => { url => '/v1/models/chat' },
	'GET /api/auth/verify' => {},
	'GET /api/logs' => {},
	'GET /api/analytics' => {},
	map { ("$_ /auth" => { url => '/auth?permission=gateway:read' }) } qw(GET HEAD POST PUT PATCH DELETE OPTIONS),
);

# Calls it with a key.
sub with_key
{
	my ($operation, $key, %option) = @_;
	my $name = "$operation->{method} $operation->{path}";
	return call($operation->{method}, $operation->{path}, limited => 0, %{ $good{$name} // die "no request for $name" },
		headers => [ "X-API-Key: $key" ], %option);
}

# --- upstreams

my $upstream = $site->start_upstream;
$site->add_upstream($_, $upstream) foreach qw(good slow stuck);
$site->add_upstream('closed', 'http://127.0.0.1:1/v1');
$site->sql(q{UPDATE regpilot.upstream SET timeout_ms = 300 WHERE name = 'slow'});
$site->add_routes(
	[ 'chat', 'good', 'at-once' ],
	[ 'timeout', 'slow', 'hang' ],
	[ 'stuck', 'stuck', 'hang' ],
	[ 'failed', 'closed', 'ok' ],
	[ 'silent', 'slow', 'silent-stream' ],
	map { [ $_, 'good', $_ ] } qw(embed tools dies error-400 no-options));

my (undef, $key) = $site->create_key(environment => 'prod');
my (undef, $plain) = $site->create_key;
my ($revoked_id, $revoked) = $site->create_key;
$site->sql("SELECT regpilot.revoke_key('$revoked_id')");
my %permissions = map { ($_ => 1) } qw(gateway:read gateway:write logs:read analytics:read);

# --- every operation that takes a key

foreach my $operation (@keyed)
{
	my $permission = $operation->{'x-regpilot-permission'} // ($operation->{path} eq '/auth' ? 'gateway:read' : undef);
	my (undef, $limited) = $site->create_key(requests_per_minute => 1);

	with_key($operation, $key);
	with_key($operation, $plain);
	with_key($operation, $limited, limited => 1) foreach 1 .. 2;
	with_key($operation, $key, headers => []);
	with_key($operation, $_) foreach 'nobody', $revoked;
	next unless $permission;
	my (undef, $only) = $site->create_key(permissions => [$permission]);
	my (undef, $other) = $site->create_key(permissions => [ grep { $_ ne $permission } sort keys %permissions ]);
	like(with_key($operation, $only)->{status}, qr/^20[04]$/, "$operation->{method} $operation->{path}: $permission will do");
	with_key($operation, $other);
}

foreach my $scheme (@{ $document->{security} })
{
	my ($name) = keys %$scheme;
	my $header = $document->{components}{securitySchemes}{$name}{name} // 'Authorization';
	is(call('GET', '/api/auth/verify', headers => ["$header: $key"])->{status}, 200, "security scheme $name");
}
is_deeply(
	[ map { $document->{components}{securitySchemes}{ (keys %$_)[0] }{name} // 'Authorization' } @{ $document->{security} } ],
	\@credential_headers, 'the security schemes are the six headers');

# --- what is relayed

my @chats = map { $operation{"POST $_"} } '/api/ai/chat', '/v1/chat/completions';

sub relay { my ($operation, %member) = @_; return with_key($operation, $key, sent => { %$message, %member }) }

foreach my $chat (@chats)
{
	relay($chat, stream => $_) foreach $true, $false, undef;
	relay($chat, model => undef, quality => $_, stream => $false) foreach qw(cheap balanced frontier), undef;
	relay($chat, stream => $true, stream_options => { include_usage => $_ }) foreach $true, $false, undef;
	relay($chat, temperature => $_, stream => $false) foreach 0, 1.5, 2, undef;
	relay($chat, model => 'any/other: name', stream => $_) foreach $true, $false;
	relay($chat, model => 'tools', tools => [ { type => 'function', function => { name => 'f' } } ], stream => $_)
	  foreach $true, $false;
	relay($chat, messages => [ { role => 'user', content => [ { type => 'text', text => "na\x{ef}ve" } ] },
			{ role => 'assistant', content => undef, tool_calls => [] } ], stream => $false);
	relay($chat, model => $_, stream => $true) foreach qw(dies silent);

	relay($chat, model => 'error-400', stream => $false);
	relay($chat, model => 'no-options', stream_options => {}, user => '422', stream => $false);
	relay($chat, model => $_) foreach qw(failed timeout);
	foreach my $bad (
		[ messages => undef, 'x', {}, [] ],
		[ messages => map { [$_] } 1, undef, {}, { role => 'user' }, { role => '', content => 'x' },
			{ role => 'user', content => 7 }, { role => 'user', content => undef, tool_calls => undef } ],
		[ quality => 'best', 1, '' ],
		[ model => 1, '', "a\nb", 'm' x 201, "for $key" ],
		[ temperature => -0.1, 2.1, 'x', $true ],
		[ stream => 'yes', 1 ],
		[ stream_options => 1, [], { include_usage => 1 } ])
	{
		my ($member, @values) = @$bad;
		is(relay($chat, $member => $_)->{status}, 400, "$chat->{path}: refused: $member") foreach @values;
	}
}

my $embeddings = $operation{'POST /v1/embeddings'};
foreach my $model ('embed', 'any')
{
	with_key($embeddings, $key, sent => { model => $model, %$_ })
	  foreach { input => [ 'a', 'b' ] }, { input => [ 1, 2 ] }, { input => [ [ 1, 2 ], [3] ] },
	  { input => 'a', encoding_format => 'base64', dimensions => 8 };
}
with_key($embeddings, $key, sent => { input => 'a', model => $_ }) foreach qw(failed timeout);
with_key($embeddings, $key, sent => { input => 'a', model => 'any', dimensions => 5000 });
with_key($embeddings, $key, sent => { input => 'a', model => 'no-options', stream_options => {}, user => '422' });
is(with_key($embeddings, $key, sent => { input => 'a', %$_ })->{status}, 400, 'embeddings: refused')
  foreach { input => undef }, { input => '' }, { input => [] }, { input => 7 }, { input => [ 'a', 1 ] },
  { input => [ [] ] }, { quality => 'best' }, { model => '' };

foreach my $relayed (@chats, $embeddings)
{
	with_key($relayed, $key, sent => $_) foreach '', '{', '[]', '7';
	with_key($relayed, $key, sent => 'x' x 100_001);
	with_key($relayed, $key, type => 'text/plain');
}
$site->sql(q{DELETE FROM regpilot.route WHERE alias = '*'});
$site->add_routes;
with_key($_, $key, sent => { %{ $good{"POST $_->{path}"}{sent} }, model => 'nobody-knows' }) foreach @chats, $embeddings;
with_key($operation{'GET /v1/models/{id}'}, $key, url => "/v1/models/$_") foreach 'nobody-knows', 'no%0Aname';

call($_, '/auth', url => '/auth?permission=admin', headers => ["X-API-Key: $key"], limited => 0)
  foreach grep { $operation{"$_ /auth"} } qw(GET HEAD POST PUT PATCH DELETE OPTIONS);
call('GET', '/auth', headers => ["X-API-Key: $key"], limited => 0);

# as many answers as may be relayed at a time
my $stuck = $json->encode({ %$message, model => 'stuck', stream => $false });
my @held = map {
	IPC::Run::start(
		[ 'curl', '--silent', '--json', $stuck, '--header', "X-API-Key: $key", $site->url . '/api/ai/chat' ],
		'<', \undef, '>', \my $out)
} 1 .. 2;
wait_until('two answers to be relayed', sub { $site->get('/metrics')->{body} =~ /^regpilot_relays_open 2$/m });
with_key($_, $key) foreach @chats, $embeddings;
$_->kill_kill foreach @held;

# --- who needs no key

call('GET', $_) foreach grep { !is_later($_) } qw(/healthz /readyz /metrics /openapi.json);

if (!is_later('/openapi.json'))
{
	is($site->get('/openapi.json')->{body}, slurp_file('fcgi/openapi.json'), '/openapi.json is the document');
}

# --- logs and analytics

my @parameters = (
	[ '/api/logs', [ 'status=failed', 'status=2xx', 'status=400', 'limit=1', 'environment=prod', 'model=echo',
			'from=2026-01-01T00:00:00Z&to=2100-01-01T00:00:00Z', "key_id=$revoked_id" ],
		[ 'status=abc', 'status=600', 'limit=0', 'limit=1001', 'from=yesterday', 'key_id=7', 'environment=moon',
			'cursor=x', 'nothing=1' ] ],
	[ '/api/analytics', [ 'period=day', 'period=week', 'period=month', 'environment=prod', 'model=echo', "key_id=$revoked_id" ],
		[ 'period=year', 'key_id=7', 'environment=moon', 'status=200' ] ]);

sub with_parameters
{
	my ($path, $good, $bad, $refused, $real, @rest) = @_;
	is(call('GET', $path, url => "$real?$_", @rest)->{status}, 200, "$path?$_") foreach @$good;
	is(call('GET', $path, url => "$real?$_", @rest)->{status}, $refused, "$path?$_: refused") foreach @$bad;
	return;
}

foreach my $parameters (@parameters)
{
	my ($path, $good, $bad) = @$parameters;
	next if is_later($path);
	with_parameters($path, $good, $bad, 400, $path, headers => ["X-API-Key: $key"], limited => 0);
}
if (!is_later('/api/logs'))
{
	wait_until('the log', sub { @{ $site->get('/api/logs', "X-API-Key: $key")->{json}{data} } > 1 });
	my %with = (headers => ["X-API-Key: $key"]);
	my $first = call('GET', '/api/logs', url => '/api/logs?limit=1', %with);
	my $second = call('GET', '/api/logs', url => "/api/logs?limit=1&cursor=$first->{json}{next_cursor}", %with);
	isnt($second->{json}{data}[0]{id}, $first->{json}{data}[0]{id}, 'the next page has other rows');
}

# --- the dashboard

my $uuid = '00000000-0000-4000-8000-000000000000';
my $node = $site->node;
my @dashboard = operations(sub { $_[0]{path} =~ m{^/dashboard/api/} });
my $page = 'X-RegPilot-Dashboard: 1';

# The address of an operation, with these for what is in its path.
sub url_of
{
	my ($operation, $project, $key) = @_;
	return $operation->{path} =~ s/\{project_id\}/$project/r =~ s/\{key_id\}/$key/r;
}

sub sign_in
{
	my ($role, $password) = @_;
	return call('POST', '/dashboard/api/session', sent => { role => $role, password => $password }, headers => [$page]);
}

sub cookie_of
{
	my ($answer) = @_;
	return 'Cookie: ' . ($answer->{headers}{'set-cookie'} // '') =~ s/;.*//r;
}

# The body that an operation takes, of the document; undef: none.
sub example_of
{
	my ($operation) = @_;
	my $body = $operation->{requestBody};
	return $body ? $body->{content}{'application/json'}{example} : undef;
}

sub as
{
	my ($cookie, $operation, $project, $key, %option) = @_;
	return call($operation->{method}, $operation->{path}, url => url_of($operation, $project, $key),
		sent => example_of($operation), headers => [ $page, $cookie ], %option);
}

if (!is_later('/dashboard'))
{
	my $hba = $node->data_dir . '/pg_hba.conf';
	my $rules = slurp_file($hba);
	unlink $hba;
	append_to_file($hba, "local all alice,bob,mallory scram-sha-256\n$rules");
	$node->reload;
	$site->sql(q{CREATE ROLE alice LOGIN PASSWORD 'of alice' IN ROLE regpilot_admin;
				 CREATE ROLE bob LOGIN PASSWORD 'of bob' IN ROLE regpilot_reader;
				 CREATE ROLE mallory LOGIN PASSWORD 'of mallory'});
	my $project = $site->{projects}{enterprise};
	$site->sql("INSERT INTO regpilot.project_member VALUES ('$project', 'bob')");
	my ($key_id) = $site->create_key;

	call('GET', $_) foreach grep { $operation{"GET $_"} } qw(/dashboard /dashboard/ /dashboard/app.js /dashboard/style.css);

	# without a session, with one, and with one that has ended
	sign_in('alice', 'of bob');
	my $alice = cookie_of(sign_in('alice', 'of alice'));
	my $bob = cookie_of(sign_in('bob', 'of bob'));
	foreach my $operation (@dashboard)
	{
		my $name = "$operation->{method} $operation->{path}";
		my @arguments = ($operation, $project, $key_id);
		is(as($alice, @arguments, headers => [$alice])->{json}{code}, 'CROSS_SITE', "$name: only from the page");
		next if $name eq 'POST /dashboard/api/session';
		is(as("X-API-Key: $key", @arguments)->{json}{code}, 'FORBIDDEN', "$name: a key opens nothing");
		is(as('X-Nothing: 1', @arguments)->{json}{code}, 'NOT_SIGNED_IN', "$name: for who has signed in");
		next if !$operation->{requestBody};
		is(as($bob, @arguments)->{json}{code}, 'FORBIDDEN', "$name: for admins alone");
	}
	foreach my $operation (grep { $_->{requestBody} } @dashboard)
	{
		as($alice, $operation, $project, $key_id, sent => '[');
		as($alice, $operation, $project, $key_id, sent => 'x' x 100_001);
		as($alice, $operation, $project, $key_id, type => 'text/plain');
	}

	# what there is, to both; then what changes things
	foreach my $operation (grep { $_->{method} eq 'GET' } @dashboard)
	{
		is(as($_, $operation, $project, $key_id)->{status}, 200, "$operation->{path}: may be looked at") foreach $alice, $bob;
	}
	foreach my $list (
		[ logs => @{ $parameters[0] }[ 1, 2 ] ],
		[ analytics => @{ $parameters[1] }[ 1, 2 ] ],
		[ keys => [ 'search=key', 'status=revoked', 'status=flagged', 'limit=1' ], [ 'status=lost', 'limit=0', 'cursor=x' ] ],
		[ audit => [ "key_id=$key_id", 'limit=1' ], [ 'key_id=7', 'limit=0', 'cursor=x' ] ])
	{
		my ($what, $good, $bad) = @$list;
		my $path = "/dashboard/api/projects/{project_id}/$what";
		with_parameters($path, $good, $bad, 422, url_of($operation{"GET $path"}, $project, $key_id), headers => [ $page, $alice ]);
	}
	foreach my $action (qw(disable enable review rotate revoke))
	{
		my $operation = $operation{"POST /dashboard/api/keys/{key_id}/$action"};
		is(as($alice, $operation, $project, $key_id)->{status}, 200, $action);
		is(as($alice, $operation, $project, $uuid)->{status}, 404, "$action: there is no such key");
	}
	as($alice, $operation{"POST /dashboard/api/keys/{key_id}/$_"}, $project, $revoked_id) foreach qw(disable enable review rotate);
	my $revoke = $operation{'POST /dashboard/api/keys/{key_id}/revoke'};
	is(as($alice, $revoke, $project, $key_id, sent => { reason => $_->[0] })->{status}, $_->[1], 'the reason of a revocation')
	  foreach [ undef, 200 ], [ 7, 422 ];
	my $create = $operation{'POST /dashboard/api/projects/{project_id}/keys'};
	is(as($alice, $create, $project, $key_id, sent => $_)->{status}, 200, 'a key is created')
	  foreach example_of($create), { name => 'least' },
	  { name => 'nulls', environment => undef, requests_per_minute => undef, expires_at => undef };
	is(as($alice, $create, $project, $key_id, sent => $_)->{status}, 422, 'no key is created')
	  foreach { name => '' }, { name => 'x', environment => 'moon' }, { name => 'x', permissions => [] };
	as($alice, $create, $uuid, $key_id);
	my $new = $operation{'POST /dashboard/api/projects'};
	is(as($alice, $new, $project, $key_id)->{status}, $_, 'a project is created once') foreach 200, 422;
	as($alice, $operation{"GET /dashboard/api/$_"}, $uuid, $uuid) foreach 'projects/{project_id}', 'keys/{key_id}';

	is(call('GET', $_, headers => [ $page, $alice ], response => 'NotFound')->{status}, 404, "$_: nothing")
	  foreach qw(/dashboard/nothing /dashboard/api/nothing);

	my $out = $operation{'DELETE /dashboard/api/session'};
	is(as($bob, $out, $project, $key_id)->{status}, 204, 'bob signs out');
	is(as($bob, $out, $project, $key_id)->{status}, 401, 'and is out');
	wait_until('attempts to be slowed', sub { sign_in('mallory', 'guess')->{status} == 429 });
}

# --- addresses and methods

my @methods = qw(GET HEAD POST PUT PATCH DELETE OPTIONS);
my %in_path = (id => 'chat', project_id => $uuid, key_id => $uuid);
sub filled { return $_[0] =~ s/\{(\w+)\}/$in_path{$1}/gr }

# The addresses of fcgi/request.c are those of the document.
my @served = slurp_file('fcgi/request.c') =~ /\.path = "([^"]+)"/g;
cmp_ok(scalar @served, '>', 5, 'the table of endpoints was found');
my @paths = grep { !is_later($_) } sort keys %{ $document->{paths} };
foreach my $served (@served)
{
	ok(scalar(grep { $_ eq $served || $served =~ m{/$} && /^\Q$served\E./ } @paths), "the endpoint $served is documented");
}
foreach my $path (@paths)
{
	ok(scalar(grep { $_ eq $path || m{/$} && $path =~ /^\Q$_\E./ } @served), "$path is an endpoint");
}

foreach my $path (@paths)
{
	my @documented = grep { $operation{"$_ $path"} } @methods;
	next if @documented == @methods;
	foreach my $method ('BREW', @methods)
	{
		next if grep { $_ eq $method } @documented;
		my $answer = call($method, $path, url => filled($path), headers => [$page], response => 'MethodNotAllowed');
		is($answer->{status}, 405, "$method $path");
		is_deeply([ sort split /, /, $answer->{headers}{allow} // '' ], [ sort @documented ], "$method $path: Allow");
	}
}

# None but they is served.
my %elsewhere = map { ($_ => 1) } '/', '/nothing', '/v1', '/v1/chat', '/admin';
foreach my $path (grep { !/\{/ } keys %{ $document->{paths} })
{
	$elsewhere{$_} = 1 foreach "$path/", "${path}x", uc $path, $path =~ s{/[^/]*$}{}r || '/';
	$elsewhere{$path} = 1 if is_later($path);    # and is to be taken from the list once it is there
}
foreach my $path (sort keys %elsewhere)
{
	next if grep { my $served = $_; $path eq $served || $served =~ m{/$} && $path =~ /^\Q$served\E/ } @served;
	is(call('GET', $path, response => 'NotFound')->{status}, 404, "GET $path: nothing");
}

# --- headers that are too large, which nginx does not let through

foreach my $operation (operations(sub { 1 }))
{
	my $url = filled($operation->{path});
	my $connection = RegPilot::FastCGI->new($site);
	$connection->send(
		request(1, { REQUEST_METHOD => $operation->{method}, REQUEST_URI => $url, HTTP_X_LONG => 'x' x 300_000 }));
	my $answer = $connection->answer;
	is($answer->{status}, 431, "$operation->{method} $operation->{path}: 431");
	delete $answer->{headers}{status};
	note_answer($operation->{method}, $operation->{path}, $answer, url => $url);
}

# --- nobody there

$node->stop('fast');
is(with_key($_, $key)->{status}, 503, "$_->{method} $_->{path}: no database") foreach @keyed;
wait_until('readiness to end', sub { $site->get('/readyz')->{status} == 503 });
call('GET', '/readyz');
if (!is_later('/dashboard'))
{
	sign_in('alice', 'of alice');
}
$site->end_responder('TERM');
foreach my $operation (operations(sub { 1 }))
{
	my $url = filled($operation->{path});
	my $answer = call($operation->{method}, $operation->{path}, url => $url, headers => [$page]);
	is($answer->{status}, 503, "$operation->{method} $operation->{path}: no responder");
}

run_client($site, { answers => $answers, later => \@later, unprovoked => \@unprovoked },
	'node', 't/clients/openapi.mjs', 'answers');

done_testing();
