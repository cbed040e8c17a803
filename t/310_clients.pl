# Clients that are not OpenAI's: Node's fetch, Python's requests and urllib, and curl,
# also as the README shows them.

use strict;
use warnings;
use lib 't/lib';
use Cwd qw(getcwd);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use RegPilot::Client;
use RegPilot::Clock;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(env => { REGPILOT_PING_INTERVAL => 100 });
my $upstream = $site->start_upstream;
$site->add_upstream('good', $upstream);
$site->add_upstream('dies', $upstream);    # is not to be passed over for it
$site->add_routes(
	[ 'chat', 'good', 'ok' ],
	[ 'dies', 'dies', 'dies' ],
	map { [ $_, 'good', $_ ] } qw(long-stream silent-stream hang embed));

my (undef, $key) = $site->create_key;
my (undef, $reads) = $site->create_key(permissions => ['gateway:read']);
my @retried = map { ($site->create_key(requests_per_minute => 1))[1] } 1 .. 2;
my %credentials = map { ($_ => /authorization/i ? "Bearer $key" : $key) } @credential_headers;
my $config = {
	url => $site->url,
	key => { whole => $key, reads => $reads, retried => $retried[0] },
	credentials => \%credentials,
	requests => $site->upstream_requests,
};

# Debian's, which has Debian's requests.
my @python = ('/usr/bin/python3', 't/clients/client.py');

run_client($site, $config, 'node', 't/clients/fetch.mjs', 'calls');
run_client($site, $config, @python, 'calls');

# --- curl

foreach my $header (@credential_headers)
{
	my $answer = $site->curl('/v1/chat/completions', '--header', "$header: $credentials{$header}",
		'--json', '{"model":"chat","messages":[{"role":"user","content":"test"}]}');
	is($answer->{status}, 200, "curl: $header");
	is($answer->{json}{choices}[0]{message}{content}, 'one two three four five', "curl: $header: the answer");
}
is($site->curl('/v1/models', '--oauth2-bearer', $key)->{status}, 200, 'curl: --oauth2-bearer');
is($site->curl('/v1/models', '--http1.0', '--oauth2-bearer', $key)->{status}, 200, 'curl: HTTP/1.0');

# --- tried again, as Retry-After says

my $python = start_client($site, $config, @python, 'retry');
wait_until('the one place of a minute to be taken', sub { grep { $_->{taken} } client_said($python) });
my $limited = "X-API-Key: $retried[1]";
is($site->get('/api/auth/verify', $limited)->{status}, 200, 'curl: the one place of a minute');
step_monotonic_clock(56);
my ($out, $err) = ('', '');
IPC::Run::run([ 'curl', '--retry', 2, '--no-progress-meter', '--write-out', ' %{http_code}', '--header', $limited,
		$site->url . '/api/auth/verify' ], '<', \undef, '>', \$out, '2>', \$err);
like($out, qr/ 200$/, 'curl: tries again after 429');
my @waits = $err =~ /Will retry in (\d+) second/g;
ok(@waits == 1 && $waits[0] <= 5, 'curl: once, when Retry-After says') or diag($err);
finish_client($python);

# --- what the README shows, in a directory of its own: the echo answers

my $readme = slurp_file('README.md');
my $dir = "$site->{dir}/readme";
mkdir $dir;
symlink getcwd() . '/t/clients/node_modules', "$dir/node_modules" or die "node_modules: $!";
append_to_file("$dir/file", "X-API-Key: $key\n");

sub run_example
{
	my ($code, @command) = @_;
	my ($out, $err) = ('', '');
	append_to_file("$dir/$command[-1]", $code);
	IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err, init => sub {
		chdir $dir;
		@ENV{qw(REGPILOT_URL REGPILOT_API_KEY LD_PRELOAD)} = ($site->url, $key, '');
	});
	is($? >> 8, 0, "README: $command[-1] ends well") or diag("$code\n$err");
	return $out;
}

my %example = map { $_ => [ $readme =~ /^```$_\n(.*?)^```$/msg ] } qw(sh js python);
like(run_example($example{sh}[0], 'sh', 'example.sh'), qr/"Hello!"/, 'README: curl');
is(run_example($example{js}[0], 'node', 'example.mjs'), 'Hello!', 'README: the openai package');
is(run_example($example{python}[0], '/usr/bin/python3', 'example.py'), "Hello!\n", 'README: requests');

my @inline = $readme =~ /`(curl \$REGPILOT_URL[^`]*)`/g;
like(run_example($inline[0], 'sh', 'verify.sh'), qr/"valid":true/, 'README: a key checked by hand');

done_testing();
