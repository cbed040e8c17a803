# The key of a request, and the secret of a provider, are in nothing that the responder or
# what is around it writes or tells, wherever a client or a provider may put them.

use strict;
use warnings;
use lib 't/lib';
use Digest::SHA qw(sha256_hex);
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

sub random_characters { return join '', map { (0 .. 9, 'a' .. 'z')[ rand 36 ] } 1 .. $_[0] }

my %secret = (ENV_SECRET => 'provider-' . random_characters(30), FILE_SECRET => 'provider-' . random_characters(30));
my $site = RegPilot::Test->new(
	conf => <<~CONF,
		log_statement = all
		log_min_duration_statement = 0
		log_parameter_max_length = -1
		log_parameter_max_length_on_error = -1
		log_error_verbosity = verbose
		log_min_messages = debug1
		track_activity_query_size = 64kB
		CONF
	env => sub {
		my ($site) = @_;
		mkdir "$site->{dir}/secrets";
		append_to_file("$site->{dir}/secrets/FILE_SECRET", "$secret{FILE_SECRET}\n");
		return { ENV_SECRET => $secret{ENV_SECRET}, REGPILOT_SECRETS_DIR => "$site->{dir}/secrets" };
	});

my (%id, %key);
($id{$_}, $key{$_}) = $site->create_key foreach qw(valid revoked inactive cut);
($id{environment}, $key{environment}) = $site->create_key(environment => 'prod');
($id{limited}, $key{limited}) = $site->create_key(requests_per_minute => 1);
($id{forbidden}, $key{forbidden}) = $site->create_key(permissions => ['logs:read']);
$key{unknown} = 'sk_staging_' . random_characters(32);
$key{imported} = 'live-' . random_characters(20);    # made elsewhere
$site->sql("SELECT regpilot.revoke_key('$id{revoked}', 'test')");
$site->sql("SELECT regpilot.disable_key('$id{inactive}')");
my $project = $site->sql("SELECT regpilot.create_project('other', 'enterprise')");
$site->sql("SELECT regpilot.import_key('$project', 'imported', '\\x" . sha256_hex($key{imported}) . "')");

# What a client calls a model is passed on, and logged.
my $upstream = $site->start_upstream;
$site->sql(q{UPDATE regpilot.route SET model = NULL WHERE alias = '*'});
foreach my $name (sort keys %secret)
{
	$site->add_upstream(lc "up-$name-$_" =~ s/_/-/r, $upstream, $name) foreach 1 .. 20;
}

# --- keys, where they belong

my %told;    # answers, by what was asked
sub ask
{
	my ($what, $path, @arguments) = @_;
	my $answer = $site->curl($path, @arguments);
	$told{$what} .= join "\n", %{ $answer->{headers} }, $answer->{body}, '';
	return $answer;
}
sub body { return ('--json', JSON::PP::encode_json({ %{ user_message() }, @_ })) }

foreach my $fate (grep { $_ ne 'cut' } sort keys %key)
{
	foreach my $header (@credential_headers)
	{
		my $value = $header =~ /authorization/i ? "Bearer $key{$fate}" : $key{$fate};
		ask("the $fate key in $header", @$_, '--header', "$header: $value")
		  foreach ['/api/auth/verify'], ['/auth'], ['/v1/models'], [ '/api/ai/chat', body() ];
	}
}
my $whose = $site->curl('/api/auth/verify', '--header', "X-API-Key: $key{imported}")->{json}{name};
is($whose, 'imported', 'a key made elsewhere passes');

# --- and where they do not

my $control = 'control-' . random_characters(32);
is(ask('control', '/api/ai/chat', '--header', "X-API-Key: $key{valid}", body(model => $control, stream => JSON::PP::false))->{status},
	200, 'a model of some name');
foreach my $fate (qw(valid revoked environment unknown imported))
{
	my $key = $key{$fate};
	my $own = $fate =~ /revoked|unknown/ ? $key{valid} : $key;
	my @header = ('--header', "X-API-Key: $own");
	my $call = sub {
		my ($what, $status, @arguments) = @_;
		my $answer = ask("the $fate key as $what", @arguments);
		is($answer->{status}, $status, "the $fate key as $what");
		return;
	};
	foreach my $parameter (qw(api_key key access_token Authorization))
	{
		$call->("$parameter of the URL", 401, "/api/auth/verify?$parameter=$key");
		$call->("$parameter of the URL besides", 200, "/api/auth/verify?$parameter=$key", @header);
	}
	$call->('a path', 404, "/$key");
	$call->('a path below one', 404, "/api/auth/verify/$key", @header);
	$call->('a permission', 400, "/auth?permission=$key", @header);
	# (One made elsewhere is a name like any other.)
	$call->('a model to look up', 404, "/v1/models/$key", @header) if $fate ne 'imported';
	$call->('an environment', 200, '/api/auth/verify', @header, '--header', "X-RegPilot-Environment: $key");
	foreach my $header ('Cookie: key=', 'X-Request-Id: ', 'User-Agent: ', 'Referer: http://localhost/?', 'X-Secret: ', 'Origin: ', 'X-Forwarded-For: ')
	{
		$call->($header =~ s/:.*//r, 200, '/api/auth/verify', @header, '--header', "$header$key");
	}
	foreach my $header ("X_API_KEY: $key", "Authorization: Basic $key", "ApiKey: $key", "X-Auth-Token: $key")
	{
		$call->($header =~ s/:.*//r, 401, '/api/auth/verify', '--header', $header);
	}
	foreach my $model ($key, "models/$key", "$key ", "$key-mini")
	{
		$call->($model =~ s/\Q$key\E/KEY/r . ' of a chat', 400, $_, @header, body(model => $model)) foreach '/api/ai/chat', '/v1/chat/completions';
		$call->($model =~ s/\Q$key\E/KEY/r . ' of an embedding', 400, '/v1/embeddings', @header, body(model => $model, input => 'x'));
	}
	$call->("a member $_", 400, '/api/ai/chat', @header, body($_ => $key)) foreach qw(quality temperature stream messages stream_options);
	$call->("a member $_", 200, '/api/ai/chat', @header, body($_ => $key)) foreach qw(user api_key);
	$call->('no JSON', 400, '/api/ai/chat', @header, '--header', 'Content-Type: application/json', '--data-binary', $key);
	$call->('a content type', 415, '/api/ai/chat', @header, '--header', "Content-Type: $key", '--data-binary', '{}');
	$call->('a method', 405, '/api/auth/verify', @header, '--request', 'SK' . uc $key =~ tr/A-Za-z0-9//cdr =~ s/\d//gr);
}
foreach my $name (qw(task_0123456789 sk_short mask_rcnn disk_prod_model))
{
	is(ask('a name', '/api/ai/chat', '--header', "X-API-Key: $key{valid}", body(model => $name))->{status}, 200, "a model may be called $name");
}

# --- a provider that tells its secret

my @leaks = qw(body headers reason type 400 401 404 429 500 503 redirect event comment name id later not-json end);
my %passes = map { $_ => 1 } qw(headers reason type comment);
foreach my $name (sort keys %secret)
{
	my $n = 0;
	$site->add_routes(map { [ "$name-$_", lc("up-$name-" . ++$n) =~ s/_/-/r, 'leak' ] } @leaks);
	foreach my $leak (@leaks)
	{
		foreach my $stream (JSON::PP::false, JSON::PP::true)
		{
			my $answer = ask("$name: $leak", '/api/ai/chat', '--header', "X-API-Key: $key{valid}",
				body(model => "$name-$leak", user => $leak, stream => $stream));
			my $status = $answer->{status};
			ok($passes{$leak} ? $status == 200 : $status == 502 || $answer->{body} =~ /nothing|"error"/,
				"$name told in $leak: $status") or diag($answer->{body});
		}
	}
}
is((grep { ($_->{headers}{authorization} // '') eq "Bearer $secret{$_[0] // 'ENV_SECRET'}" } json_file($site->upstream_requests)) > 10, 1,
	'the provider got its secret');

# --- calls that fail at the database, and at the web server

sub activity { return $site->sql(q{SELECT coalesce(string_agg(a::text, ' '), '') FROM pg_stat_activity a}) }

my $session = $site->node->background_psql('regpilot', on_error_stop => 1);
$session->query_safe('BEGIN; LOCK TABLE regpilot.api_key');
my $activity = '';
$site->in_parallel(2, sub {
	return { $site->chat($key{cut})->{status} => 1 } if $_[0] == 0;
	wait_until('a call', sub { activity() =~ /authorize_many.*Lock|Lock.*authorize_many/s });
	append_to_file("$site->{dir}/activity", activity());
	return {};
});
$session->query_safe('COMMIT');
$session->quit;
$activity = slurp_file("$site->{dir}/activity") . activity();
$site->wait_for_verdicts;

# --- what else there is of the process

my %process;
sub look_at_process
{
	my ($what) = @_;
	my $proc = '/proc/' . $site->responder_pid;
	$process{"the command line, $what"} = slurp_file("$proc/cmdline");
	like(slurp_file("$proc/limits"), qr/^Max core file size +0 +0 /m, "$what: no core file");
	my $filter = slurp_file("$proc/coredump_filter");
	is(hex $filter, 0, "$what: nor memory for a program that the kernel starts");
	$process{"$_, $what"} = ask('watched', $_)->{body} foreach qw(/metrics /readyz /healthz);
	return;
}
look_at_process('started');
my $before = $site->responder_pid;
kill 'HUP', $before;
$site->{responder} = wait_until('a new process', sub { slurp_file($site->{responder_log}) =~ /process (\d+) has taken over/ && $1 });
look_at_process('taken over');
wait_until('the former process to end', sub { !RegPilot::Test::is_running($before) });

# nobody there: what nginx says and logs of that
$site->end_responder('TERM');
ask("the $_ key, and nobody there", '/api/ai/chat', body(), '--header', "X-API-Key: $key{$_}", '--header', "Authorization: Bearer $key{$_}")
  foreach grep { $_ ne 'cut' } sort keys %key;
ask('control, and nobody there', "/$control");

# --- the search

my %place = (
	'the server log' => slurp_file($site->node->logfile),
	'the responder log' => slurp_file($site->{responder_log}),
	'the nginx logs' => join('', map { slurp_file($_) } $site->{web_log}, glob "$site->{dir}/nginx*.log"),
	'request_log' => $site->sql('SELECT l::text FROM regpilot.request_log l'));
my %quiet_place = (
	'audit_log' => $site->sql('SELECT l::text FROM regpilot.audit_log l'),
	'pg_stat_activity' => $activity,
	(map { ("the views: $_" => $site->sql("SELECT v::text FROM regpilot.$_ v")) } qw(key_overview project_overview)),
	%process);
ok(index($place{$_}, $control) >= 0, "$_ is searched") foreach sort keys %place;
like($quiet_place{'pg_stat_activity'}, qr/authorize_many/, 'pg_stat_activity: while a call runs');
like($quiet_place{'/metrics, started'}, qr/^regpilot_requests_total.* [1-9]/m, '/metrics has counted');
%place = (%place, %quiet_place);
$place{"an answer: $_"} = $told{$_} foreach keys %told;

my %wanted = (%secret, %key);
foreach my $place (sort keys %place)
{
	# the characters at random
	my @found = grep { index($place{$place}, substr $wanted{$_}, -20) >= 0 } sort keys %wanted;
	is("@found", '', "nothing in: $place") if @found || $place !~ /^an answer/;
}
cmp_ok(scalar keys %told, '>', 100, 'nor in any answer');

done_testing();
