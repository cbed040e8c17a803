# The plaintext of a key stays out of logs, views, dumps and files, however
# talkative the server is.

use strict;
use warnings;
use lib 't/lib';
use File::Find;
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(
	conf => <<~CONF);
		shared_preload_libraries = 'regpilot,auto_explain'
		log_statement = all
		log_min_duration_statement = 0
		log_parameter_max_length = -1
		log_parameter_max_length_on_error = -1
		log_error_verbosity = verbose
		log_connections = on
		auto_explain.log_min_duration = 0
		auto_explain.log_analyze = on
		auto_explain.log_verbose = on
		auto_explain.log_nested_statements = on
		track_activity_query_size = 64kB
		CONF
my $node = $site->node;

my (%id, %key);
($id{$_}, $key{$_}) = $site->create_key foreach qw(ok revoked inactive expired locked cut);
($id{limited}, $key{limited}) = $site->create_key(requests_per_minute => 1);
($id{forbidden}, $key{forbidden}) = $site->create_key(permissions => ['logs:read']);
$key{unknown} = 'sk_prod_' . join '', map { (0 .. 9, 'a' .. 'z')[ rand 36 ] } 1 .. 32;
$key{junk} = join '', map { chr(97 + int rand 26) } 1 .. 3000;
$site->sql("SELECT regpilot.revoke_key('$id{revoked}', 'test')");
$site->sql("SELECT regpilot.disable_key('$id{inactive}')");
$site->sql("UPDATE regpilot.api_key SET expires_at = now() WHERE id = '$id{expired}'");

# every fate, in each of the headers
my %status = (ok => 200, limited => 429, forbidden => 403);
foreach my $fate (grep { !/locked|cut/ } sort keys %key)
{
	foreach my $header (@credential_headers)
	{
		my $value = $header =~ /authorization/i ? "Bearer $key{$fate}" : $key{$fate};
		my $answer = $site->post('/api/ai/chat', user_message(), "$header: $value");
		next if $fate eq 'limited' && $header eq $credential_headers[0];
		is($answer->{status}, $status{$fate} // 401, "$fate key in $header");
		unlike(join("\n", %{ $answer->{headers} }) . $answer->{body}, qr/\Q$key{$fate}\E/, "$fate key in $header: not in the answer");
	}
}

# a statement that fails, or is cut, with the key in its parameters
my $psql = $node->background_psql('regpilot', on_error_stop => 1);
$psql->query_safe('BEGIN; LOCK TABLE regpilot.api_key');
is($site->chat($key{locked})->{status}, 503, 'a call that the database gives up');
my $activity = $site->sql(q{SELECT string_agg(query, ' ') FROM pg_stat_activity});
$psql->query_safe('COMMIT');
$psql->query_safe('BEGIN; LOCK TABLE regpilot.api_key');
$site->in_parallel(
	2,
	sub {
		return { $site->chat($key{cut})->{status} => 1 } if $_[0] == 0;
		Time::HiRes::sleep(0.5);
		$site->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'regpilot_gateway'});
		return {};
	});
$psql->query_safe('COMMIT');
$psql->quit;

# The answer of create_key to psql is not the server's log, and the test's own
# output is; so the places are named.
my ($dump, $all, $stderr);
IPC::Run::run([ 'pg_dump', '--dbname', $node->connstr('regpilot') ], '>', \$dump, '2>', \$stderr) or die $stderr;
IPC::Run::run([ 'pg_dumpall', '--dbname', $node->connstr('postgres') ], '>', \$all, '2>', \$stderr) or die $stderr;
my $server_log = slurp_file($node->logfile);
my %place = (
	'the server log' => $server_log,
	'the responder log' => slurp_file($site->{responder_log}),
	'the nginx logs' => join('', map { slurp_file($_) } grep { !/responder/ && $_ ne $node->logfile } $site->logs),
	'pg_stat_activity' => $activity,
	'pg_dump' => $dump,
	'pg_dumpall' => $all,
	'all views' => $site->sql('SELECT * FROM regpilot.key_overview') . $site->sql('SELECT k FROM regpilot.api_key k'),
);

# does the server tell what the test is about?
like($server_log, qr/LOG: .*authorize_many/, 'the statement is logged');
like($server_log, qr/DETAIL: .*<redacted>/s, 'and its parameters, redacted');
like($server_log, qr/Query Text: .*authorize_many/, 'and explained');
like($server_log, qr/ERROR: .*statement timeout|ERROR: .*canceling statement/, 'and fails once');
like($dump, qr/COPY regpilot\.api_key /, 'the keys are in the dump');

$node->stop;
my $files = '';
find(sub { $files .= slurp_file($_) if -f && -s _ < 64 * 1024 * 1024 }, $node->data_dir);
$place{'the data directory'} = $files;
cmp_ok(length $files, '>', 10_000_000, 'the data directory was read');

foreach my $fate (sort keys %key)
{
	foreach my $place (sort keys %place)
	{
		ok(index($place{$place}, substr($key{$fate}, 0, 40)) < 0, "$fate key: not in $place");
		ok(index($place{$place}, unpack('H*', substr($key{$fate}, 0, 40))) < 0, "$fate key: nor as hex digits");
	}
}

done_testing();
