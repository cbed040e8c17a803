# What starts the responder: systemd's units and spawn-fcgi.

use strict;
use warnings;
use lib 't/lib';
use File::Copy ();
use IPC::Run ();
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new;
my ($key_id, $key) = $site->create_key;
# a copy of our own, by which its processes are known
my $binary = "$site->{dir}/regpilot-fcgi";
File::Copy::copy($site->responder_binary, $binary) && chmod 0755, $binary or die "copy: $!";
my $socket = $site->responder_socket;

sub run
{
	my @command = @_;
	my $output = '';
	IPC::Run::run(\@command, '<', \undef, '>&', \$output, IPC::Run::timeout(60));
	return ($? >> 8, $output);
}

# --- systemd

my @units = map { "$site->{dir}/regpilot-fcgi.$_" } qw(service socket);
foreach my $unit (@units)
{
	append_to_file($unit, slurp_file($unit =~ s{.*/}{fcgi/deploy/}r) =~ s{^ExecStart=\K\S+}{$binary}mr);
}
my ($status, $output) = run('systemd-analyze', 'verify', '--man=no', @units);
is($status, 0, 'systemd takes the units');
is($output, '', 'and objects to nothing in them');
my $broken = slurp_file($units[0]) =~ s/^StandardInput=socket/StandardInputs=socket/mr;
mkdir "$site->{dir}/broken";
append_to_file("$site->{dir}/broken/regpilot-fcgi.service", $broken);
($status, $output) = run('systemd-analyze', 'verify', '--man=no', "$site->{dir}/broken/regpilot-fcgi.service", $units[1]);
like($output, qr/StandardInputs/, 'as it would');
($status, $output) = run(qw(systemd-analyze security --offline=true --no-pager --threshold=20), $units[0]);
is($status, 0, 'what the service may do is little') or diag($output);

# --- spawn-fcgi

$site->end_responder('TERM');
unlink $socket;
my %env = (%{ $site->responder_env }, REGPILOT_LISTEN => '');
my @spawn = ('spawn-fcgi', '-s', $socket, '-M', '0660', '-b', '4096');

# in the foreground, for a supervisor
$site->{responder} = $site->spawn($site->{responder_log}, \%env, @spawn, '-n', '--', $binary);
$site->wait_for_verdicts;
is($site->chat($key)->{status}, 200, 'spawn-fcgi -n: answers');
is((stat $socket)[2] & 07777, 0660, 'spawn-fcgi -n: the mode of the socket');
is(readlink "/proc/$site->{responder}/exe", $binary, 'spawn-fcgi -n: becomes the responder');
is($site->end_responder('TERM'), 0, 'spawn-fcgi -n: ends in order');

# in the background
my $pid_file = "$site->{dir}/responder.pid";
{
	local %ENV = (%ENV, %env);
	is((run(@spawn, '-P', $pid_file, '--', $binary))[0], 0, 'spawn-fcgi: starts it in the background');
}
$site->{responder} = slurp_file($pid_file);
$site->wait_for_verdicts;
is($site->chat($key)->{status}, 200, 'spawn-fcgi: answers');

# and is replaced on the same socket
my $former = $site->{responder};
kill 'HUP', $former;
$site->{responder} = wait_until('a new process',
	sub { (grep { $_ != $former && (readlink "/proc/$_/exe" // '') eq $binary } map { m{(\d+)} } glob '/proc/[0-9]*')[0] });
wait_until('the former one to end', sub { !RegPilot::Test::is_running($former) });
is($site->chat($key)->{status}, 200, 'spawn-fcgi: SIGHUP has a new process take over');
$site->end_responder('TERM');
is($site->get('/healthz')->{status}, 503, 'spawn-fcgi: SIGTERM ends it');

is_deeply([ $site->logs_with($key) ], [], 'the key is in no log');

done_testing();
